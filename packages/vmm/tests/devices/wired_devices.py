"""All devices wired as in the machine, for a guest that does anything at all."""

import logging
import struct
from contextlib import ExitStack
from typing import Protocol

from nitro_nsm import Nsm, NsmConfig
from nitro_vmm.devices.acpi_power import AcpiPower
from nitro_vmm.devices.i8042 import I8042
from nitro_vmm.devices.io_apic import IoApic
from nitro_vmm.devices.local_apic import LocalApic
from nitro_vmm.devices.local_apic_registers import Register as ApicRegister
from nitro_vmm.devices.nsm import NsmDevice
from nitro_vmm.devices.rtc import Rtc
from nitro_vmm.devices.serial import Serial
from nitro_vmm.devices.virtio_mmio import VirtioMmio
from nitro_vmm.devices.virtio_mmio_registers import LADDER, Register
from nitro_vmm.devices.vsock import VsockDevice
from nitro_vsock import F_VERSION_1, GuestMemory, VsockConfig, VsockEngine

RAM_BYTES = 1 << 16
RING_BYTES = 1 << 12
HZ = 1_000_000_000
SIZES = (1, 2, 4, 8)
NSM, VSOCK = 6, 7

# Where queues may be and how large, also where no queue can be; and what chains of descriptors are made of.
RING_PLACES = (
    0,
    0x400,
    0x800,
    0xC00,
    0x100,
    0x500,
    0x900,
    0x200,
    0x600,
    0xA00,
    0xFFF0,
    0x1_0000,
    1,
    2,
    8,
    0xFFFF_F000,
)
RING_REGISTERS = (Register.QUEUE_DESC_LOW, Register.QUEUE_DRIVER_LOW, Register.QUEUE_DEVICE_LOW)
QUEUE_SIZES = (1, 2, 8, 16, 256, 0, 3, 0xFFFF)
CHAIN_ADDRESSES = (0x2000, 0x3000, 0, 0x400, 0xFFF8, 0x1_0000, 1 << 63, (1 << 64) - 8)
CHAIN_LENGTHS = (0, 1, 16, 44, 0x1000, 0x1_0000, 0x7FFF_FFFF, 0xFFFF_FFFF)

# One thing that the guest, its host or time does: what, size, offset, value.
OPERATION = struct.Struct("<BBHI")


class Device(Protocol):
    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class WiredDevices:
    """The devices, RAM, and a clock that moves when told."""

    def __init__(self, stack: ExitStack) -> None:
        self.now_ns = 0
        self.ram = bytearray(RAM_BYTES)
        memory = GuestMemory([(0, memoryview(self.ram))])
        self.local_apic = LocalApic(lambda: self.now_ns, HZ, lambda: None)
        self.io_apic = IoApic(self.local_apic.accept)
        self.local_apic.end_of_level_interrupt = self.io_apic.end_of_interrupt
        self.serial = Serial(self.io_apic.line(4), lambda _data: None)
        engine = VsockEngine(VsockConfig(guest_cid=16), clock=lambda: self.now_ns / HZ)
        self.vsock = VsockDevice(engine, memory, locked=lambda action: action())
        stack.callback(self.vsock.close)
        nsm = NsmDevice(Nsm(NsmConfig(), entropy=bytes, clock=lambda: self.now_ns), memory)
        self.devices: list[Device] = [
            self.local_apic,
            self.io_apic,
            self.serial,
            I8042(lambda: None, self.io_apic.line(1)),
            Rtc(lambda: self.now_ns),
            AcpiPower(lambda: None, lambda: None),
            VirtioMmio(nsm, self.io_apic.line(5), name="nsm"),
            VirtioMmio(self.vsock, self.io_apic.line(6), name="vsock"),
        ]

    def start(self, index: int) -> None:
        """Let a driver set up a virtio device, with rings from the start of RAM on."""
        device = self.devices[index]
        status = 0
        for rung in LADDER[:3]:
            device.write(Register.DRIVER_FEATURES_SEL, 4, 1)
            device.write(Register.DRIVER_FEATURES, 4, F_VERSION_1 >> 32)
            status |= rung
            device.write(Register.STATUS, 4, status)
        for queue in range(3):
            base = queue * RING_BYTES
            device.write(Register.QUEUE_SEL, 4, queue)
            device.write(Register.QUEUE_SIZE, 4, 2)
            device.write(Register.QUEUE_DESC_LOW, 4, base)
            device.write(Register.QUEUE_DRIVER_LOW, 4, base + 32)
            device.write(Register.QUEUE_DEVICE_LOW, 4, base + 64)
            device.write(Register.QUEUE_READY, 4, 1)
        device.write(Register.STATUS, 4, status | LADDER[3])

    def lay_out(self, device: Device, queue: int, layout: int) -> None:
        """Tell a device where a queue is: 4 bits each for its size and its three rings, which may overlap."""
        device.write(Register.QUEUE_SEL, 4, queue)
        device.write(Register.QUEUE_READY, 4, 0)
        device.write(Register.QUEUE_SIZE, 4, QUEUE_SIZES[layout & 7])
        for number, register in enumerate(RING_REGISTERS):
            place = layout >> 4 + 4 * number & 15
            device.write(register, 4, RING_PLACES[place])
            device.write(register + 4, 4, 0xFFFF_FFFF if layout >> 16 & 15 == number else 0)
        device.write(Register.QUEUE_READY, 4, 1)

    def chain(self, place: int, seed: int) -> None:
        """Write descriptors that hang together in any way, and offer one."""
        base = RING_PLACES[place & 3]
        for number in range(4):
            seed = seed * 1103515245 + 12345 & 0xFFFF_FFFF
            address = CHAIN_ADDRESSES[seed >> 8 & 7]
            flags, following = seed >> 16 & 7, seed >> 20 & 7
            descriptor = struct.pack("<QIHH", address, CHAIN_LENGTHS[seed >> 24 & 7], flags, following)
            self.ram[base + 16 * number : base + 16 * number + 16] = descriptor
        available = base + 0x100
        (index,) = struct.unpack_from("<H", self.ram, available + 2)
        struct.pack_into("<HH", self.ram, available, seed & 1, index + 1 & 0xFFFF)
        struct.pack_into("<H", self.ram, available + 4 + 2 * (index & 7), seed >> 4 & 7)

    def operate(self, what: int, size: int, offset: int, value: int) -> None:
        """Do one thing, and take an interrupt if there is one."""
        match what % 14:
            case 8:
                place = offset % (RAM_BYTES - 4)
                self.ram[place : place + 4] = value.to_bytes(4, "little")
            case 9:
                self.now_ns += value << (offset & 7)
                self.local_apic.tick(self.now_ns)
            case 10:
                self.serial.receive(bytes(size))
            case 11:
                self.vsock.turn()
            case 12:
                self.lay_out(self.devices[NSM + (size & 1)], size >> 1 & 3, value)
            case 13:
                self.chain(offset, value)
                self.devices[NSM + (size & 1)].write(Register.QUEUE_NOTIFY, 4, size >> 1 & 3)
            case device:
                self.access(
                    self.devices[device], SIZES[size & 3], offset & 0xFFF, value, write=bool(size & 4)
                )
        vector = self.local_apic.pending_vector()
        if vector is not None:
            assert 16 <= vector < 256
            self.local_apic.acknowledge(vector)
            if value & 1:
                self.local_apic.write(ApicRegister.END_OF_INTERRUPT, 4, 0)

    def access(self, device: Device, size: int, offset: int, value: int, *, write: bool) -> None:
        if write:
            device.write(offset, size, value)
        else:
            assert 0 <= device.read(offset, size) < 1 << 8 * size


def check(data: bytes) -> None:
    """Whatever a guest does, no device raises, and what is read fits the size that was asked for."""
    logging.disable()
    try:
        with ExitStack() as stack:
            wired = WiredDevices(stack)
            for index in (NSM, VSOCK) if data[:1] >= b"\x40" else ():
                wired.start(index)
            body = data[1:]
            for operation in OPERATION.iter_unpack(body[: len(body) // OPERATION.size * OPERATION.size]):
                wired.operate(*operation)
    finally:
        logging.disable(logging.NOTSET)
