"""A guest with a vsock driver: the registers of the transport, three queues, and packets."""

import struct
from typing import NamedTuple

from nitro_vmm.devices.virtio import VirtioDevice
from nitro_vmm.devices.virtio_mmio import VirtioMmio
from nitro_vmm.devices.virtio_mmio_registers import Register, Status
from nitro_vsock import F_VERSION_1, GuestMemory
from nitro_vsock.testing import FakeDriver

# virtio_vsock_hdr (virtio 1.3 §5.10.6): src_cid dst_cid src_port dst_port len type op flags buf_alloc fwd_cnt
HEADER = struct.Struct("<QQIIIHHIII")
REQUEST, RESPONSE, RST, SHUTDOWN, RW = 1, 2, 3, 4, 5
STREAM = 1
RUNNING = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
RAM_BYTES = 1 << 20
QUEUE_BYTES = 1 << 18
CID = 16


class Packet(NamedTuple):
    op: int
    src_cid: int
    src_port: int
    dst_port: int
    payload: bytes


class Guest:
    """Negotiates everything that is offered, unless told otherwise."""

    def __init__(self, device: VirtioDevice, memory: GuestMemory) -> None:
        self.levels: list[bool] = []
        self.transport = VirtioMmio(device, self.levels.append, name="vsock")
        self.memory = memory

    def put(self, register: int, value: int) -> None:
        self.transport.write(register, 4, value)

    def get(self, register: int) -> int:
        return self.transport.read(register, 4)

    def start(self, *, queues: tuple[int, ...] = (0, 1, 2)) -> None:
        self.put(Register.STATUS, 0)
        self.memory.slice(0, RAM_BYTES)[:] = bytes(RAM_BYTES)
        self.put(Register.STATUS, Status.ACKNOWLEDGE)
        self.put(Register.STATUS, Status.ACKNOWLEDGE | Status.DRIVER)
        features = 0
        for word in range(2):
            self.put(Register.DEVICE_FEATURES_SEL, word)
            features |= self.get(Register.DEVICE_FEATURES) << 32 * word
            self.put(Register.DRIVER_FEATURES_SEL, word)
            self.put(Register.DRIVER_FEATURES, features >> 32 * word)
        assert features & F_VERSION_1
        self.put(Register.STATUS, RUNNING & ~Status.DRIVER_OK)
        self.queues = [
            FakeDriver(
                self.memory,
                queue_size=16,
                address=index * QUEUE_BYTES,
                space=QUEUE_BYTES,
                event_idx=bool(features & 1 << 29),
            )
            for index in range(3)
        ]
        for index in queues:
            self._set_up(index)
        self.receive, self.transmit, self.events = self.queues
        for queue in self.queues:
            queue.want_interrupts()
        for _ in range(8):
            self.receive.offer(writable=[4096])
            self.events.offer(writable=[4])
        self.put(Register.STATUS, RUNNING)

    def _set_up(self, index: int) -> None:
        layout = self.queues[index].layout
        self.put(Register.QUEUE_SEL, index)
        self.put(Register.QUEUE_SIZE, layout.size)
        self.put(Register.QUEUE_DESC_LOW, layout.descriptor_table)
        self.put(Register.QUEUE_DRIVER_LOW, layout.available_ring)
        self.put(Register.QUEUE_DEVICE_LOW, layout.used_ring)
        self.put(Register.QUEUE_READY, 1)

    def send(self, op: int, dst_port: int, payload: bytes = b"", *, src_port: int = 1024) -> None:
        header = HEADER.pack(CID, 3, src_port, dst_port, len(payload), STREAM, op, 0, 1 << 18, 0)
        self.transmit.offer(readable=[header + payload])
        self.put(Register.QUEUE_NOTIFY, 1)

    def received(self) -> list[Packet]:
        """What came since the last call; its buffers are offered again."""
        packets = []
        for data in self.receive.used():
            src_cid, _, src_port, dst_port, length, _, op, *_ = HEADER.unpack_from(data)
            packets.append(Packet(op, src_cid, src_port, dst_port, data[HEADER.size :][:length]))
            self.receive.offer(writable=[4096])
        if packets:
            self.receive.want_interrupts()
            self.put(Register.QUEUE_NOTIFY, 0)
        return packets

    def acknowledge(self) -> int:
        status = self.get(Register.INTERRUPT_STATUS)
        self.put(Register.INTERRUPT_ACK, status)
        return status
