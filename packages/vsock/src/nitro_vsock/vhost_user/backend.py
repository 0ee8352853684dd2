"""The back-end's half of a vhost-user session: messages in, replies out; no socket.

A front-end says piece by piece where the guest's memory and rings are, in no order that could be relied on:
new call descriptors come while rings run, before there is memory and after all has stopped. So every message
only changes what is known, and then one place (`Backend._settle`) compares what should run with what does.
Rings run once they have memory, a size, addresses and a kick descriptor, and are enabled; the first two of
them (receive and transmit) only together. GET_VRING_BASE stops a ring until it gets a new kick descriptor.

QEMU stops and starts the rings when it pauses a guest and when it resets one. It goes on with the old
positions after a pause, with 0 after a reset: that is how a fresh start is told from a resumed one. Rings
that go on where this session never was are those of a guest that had another back-end before: its connections
are lost, and it has to be told.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nitro_vsock.errors import VsockError
from nitro_vsock.vhost_user import messages
from nitro_vsock.vhost_user.errors import RefusedError, VhostUserError
from nitro_vsock.vhost_user.memory_map import MemoryMap, map_region
from nitro_vsock.vhost_user.messages import MemoryRegion, Message, ProtocolFeature, Request, VringAddress
from nitro_vsock.virtio.guest_memory import GuestMemory
from nitro_vsock.virtio.split_queue import QueueLayout

QUEUES = 3
"""Receive, transmit and event queue. QEMU keeps the last one to itself and passes two."""
QUEUES_NEEDED = 2

PROTOCOL_FEATURES_OFFERED = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)

MEMORY_SLOTS = 32
"""Regions at once with ADD_MEM_REG; each costs one file descriptor here."""


@dataclass(frozen=True, slots=True)
class Ring:
    """What a device needs to serve a ring. Its `call` stays right when the front-end swaps the descriptor."""

    layout: QueueLayout
    next_available: int
    kick: int
    call: Callable[[], None]


class Device(Protocol):
    """What a session serves."""

    features: int
    """The virtio features that it offers."""

    def read_config(self) -> bytes:
        """The whole configuration space."""

    def start(self, memory: GuestMemory, rings: Sequence[Ring | None], features: int) -> None:
        """Serve these rings: receive, transmit, perhaps event.

        Raises:
            VsockError: They cannot be served; the session ends.
        """

    def stop(self) -> list[int]:
        """Leave the rings alone and drop every view of guest memory, but keep connections.

        Returns:
            The next index to take from each ring that was given to `start`.
        """

    def reset(self) -> None:
        """Forget the guest, which was reset, or whose front-end has gone. Called only while stopped."""

    def lost(self) -> None:
        """Tell the guest, once its rings are started next, that none of its connections are left."""


class _RingState:
    """What a front-end has said about one ring. It owns the ring's descriptors."""

    def __init__(self) -> None:
        self.size = 0
        self.base = 0
        self.address: VringAddress | None = None
        self.enabled = False
        self.kick: int | None = None
        self.called: int | None = None
        self.error: int | None = None
        self._lock = threading.Lock()
        """Held while a descriptor is used, because the number of one that is closed may be another file's at
        once."""

    def call(self) -> None:
        """Interrupt the guest. From any thread."""
        with self._lock:
            if self.called is not None:
                try:  # noqa: SIM105 (for every interrupt: `suppress` takes half as long as the write)
                    os.eventfd_write(self.called, 1)
                except OSError:
                    pass  # it is full, so an interrupt is on its way; or it is not an eventfd

    def replace(self, name: str, descriptor: int | None) -> None:
        """Take over another descriptor, or none, and close the one of before."""
        with self._lock:
            old = getattr(self, name)
            setattr(self, name, descriptor)
            if old is not None:
                os.close(old)

    def close(self) -> None:
        for name in ("kick", "called", "error"):
            self.replace(name, None)


class Backend:
    """One session with one front-end.

    Args:
        device: What is started and stopped as the front-end says.
        queue_size_max: Longest ring accepted, in descriptors.
    """

    def __init__(self, device: Device, *, queue_size_max: int = 1024) -> None:
        self._device = device
        self._queue_size_max = queue_size_max
        self._offered = device.features | messages.PROTOCOL_FEATURES
        self._features: int | None = None
        self._protocol_features = ProtocolFeature(0)
        self._memory = MemoryMap()
        self._memory_version = 0
        self._rings = [_RingState() for _ in range(QUEUES)]
        self._running: tuple[object, ...] | None = None
        self._stopped_at: list[int] = []

    def receive(self, message: Message) -> bytes:
        """Obey one message, and take over its descriptors; returns the bytes to answer, which are often none.

        Raises:
            VhostUserError: The session is over; `close` it.
        """
        descriptors = list(message.descriptors)
        try:
            if message.reply:
                raise VhostUserError(f"{message.name}: a reply, but nothing was asked")
            wants_ack = message.need_reply and ProtocolFeature.REPLY_ACK in self._protocol_features
            try:
                answer = self._obey(message, descriptors)
                self._settle()
            except RefusedError:
                if not wants_ack:
                    raise
                return Message(message.request, messages.U64.pack(1), reply=True).encode()
            except VhostUserError:
                raise
            except VsockError as error:
                raise VhostUserError(f"{message.name}: {error}") from error
            if answer is None:
                if not wants_ack:
                    return b""
                answer = messages.U64.pack(0)
            return Message(message.request, answer, reply=True).encode()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def close(self) -> None:
        """End the session: stop the device, close every descriptor. May be called twice."""
        if self._running is not None:
            self._running = None
            self._device.stop()
        self._device.reset()
        for ring in self._rings:
            ring.close()
        self._memory = MemoryMap()

    def _obey(self, message: Message, descriptors: list[int]) -> bytes | None:
        """Do what a message says and return the reply's payload; remove what is kept from ``descriptors``."""
        match message.request:
            case Request.GET_FEATURES:
                return messages.U64.pack(self._offered)
            case Request.SET_FEATURES:
                self._features = self._subset(message, self._offered)
            case Request.GET_PROTOCOL_FEATURES:
                return messages.U64.pack(PROTOCOL_FEATURES_OFFERED)
            case Request.SET_PROTOCOL_FEATURES:
                self._protocol_features = ProtocolFeature(self._subset(message, PROTOCOL_FEATURES_OFFERED))
            case Request.GET_QUEUE_NUM:
                return messages.U64.pack(QUEUES)
            case Request.GET_MAX_MEM_SLOTS:
                return messages.U64.pack(MEMORY_SLOTS)
            case Request.GET_CONFIG:
                return self._config(message)
            case Request.SET_OWNER:
                pass
            case Request.RESET_OWNER | Request.RESET_DEVICE:
                # Back to the beginning, where nothing runs until features are negotiated and rings are
                # enabled.
                self._features = None
                for ring in self._rings:
                    ring.enabled = False
                self._settle()
                self._reset_device()
            case Request.SET_MEM_TABLE | Request.ADD_MEM_REG | Request.REM_MEM_REG:
                self._change_memory(message)
            case Request.GET_VRING_BASE:
                return self._stop_ring(message)
            case (
                Request.SET_VRING_NUM
                | Request.SET_VRING_BASE
                | Request.SET_VRING_ENABLE
                | Request.SET_VRING_ADDR
            ):
                self._change_ring(message)
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                self._change_descriptor(message, descriptors)
            case _:
                # Unknown requests without NEED_REPLY are not answered, and there is nothing to undo.
                if message.need_reply:
                    raise RefusedError(f"{message.name} is not supported")
        return None

    def _subset(self, message: Message, offered: int) -> int:
        wanted = message.u64()
        if wanted & ~offered:
            raise RefusedError(f"{message.name}: {wanted & ~offered:#x} was not offered ({offered:#x} was)")
        return wanted

    def _config(self, message: Message) -> bytes:
        """The part of the configuration space that is asked for; empty says that there is no such part."""
        if len(message.payload) < messages.CONFIG.size:
            raise VhostUserError(f"{message.name}: payload of {len(message.payload)} bytes")
        offset, size, flags = messages.CONFIG.unpack_from(message.payload)
        content = self._device.read_config()
        if not size or offset + size > len(content):
            return b""
        return messages.CONFIG.pack(offset, size, flags) + content[offset : offset + size]

    def _change_memory(self, message: Message) -> None:
        if message.request == Request.SET_MEM_TABLE:
            regions = MemoryRegion.table(message)
            memory = MemoryMap()
            if len(message.descriptors) != len(regions):
                raise RefusedError(
                    f"{message.name}: {len(regions)} regions and {len(message.descriptors)} descriptors"
                )
            for region, descriptor in zip(regions, message.descriptors, strict=True):
                memory.add(region, map_region(region, descriptor))
            self._memory = memory
        elif message.request == Request.ADD_MEM_REG:
            region = MemoryRegion.single(message)
            if len(self._memory) >= MEMORY_SLOTS:
                raise RefusedError(f"{message.name}: more than {MEMORY_SLOTS} regions")
            if len(message.descriptors) != 1:
                raise RefusedError(f"{message.name}: {len(message.descriptors)} descriptors, must be 1")
            self._memory.add(region, map_region(region, message.descriptors[0]))
        else:
            self._memory.remove(MemoryRegion.single(message))
        self._memory_version += 1

    def _ring(self, message: Message, index: int) -> _RingState:
        if index >= QUEUES:
            raise RefusedError(f"{message.name}: ring {index}, there are {QUEUES}")
        return self._rings[index]

    def _change_ring(self, message: Message) -> None:
        if message.request == Request.SET_VRING_ADDR:
            address = VringAddress(*message.unpack(messages.VRING_ADDRESS))
            self._ring(message, address.ring).address = address
            return
        index, number = message.unpack(messages.VRING_STATE)
        ring = self._ring(message, index)
        if message.request == Request.SET_VRING_ENABLE:
            ring.enabled = number == 1
        elif message.request == Request.SET_VRING_BASE:
            ring.base = number & 0xFFFF
        elif not 1 <= number <= self._queue_size_max or number & (number - 1):
            raise RefusedError(
                f"{message.name}: ring {index} of {number} descriptors, must be a power of two up to"
                f" {self._queue_size_max} (queue size of the back-end)"
            )
        else:
            ring.size = number

    def _change_descriptor(self, message: Message, descriptors: list[int]) -> None:
        value = message.u64()
        ring = self._ring(message, value & messages.RING_INDEX_MASK)
        expected = 0 if value & messages.NO_DESCRIPTOR else 1
        if len(descriptors) != expected:
            raise RefusedError(f"{message.name}: {len(descriptors)} descriptors, must be {expected}")
        if not descriptors and message.request == Request.SET_VRING_KICK:
            raise RefusedError(f"{message.name}: without a descriptor the ring would have to be polled")
        descriptor = descriptors.pop() if descriptors else None
        if descriptor is not None:
            os.set_blocking(descriptor, False)
        match message.request:
            case Request.SET_VRING_KICK:
                # The device waits for kicks at the old descriptor until it is stopped, so it has to be
                # stopped first.
                self._stop()
                ring.replace("kick", descriptor)
            case Request.SET_VRING_CALL:
                ring.replace("called", descriptor)
                # What was written to the old one may have gone unseen. One interrupt too many does no harm.
                if self._running is not None:
                    ring.call()
            case _:
                ring.replace("error", descriptor)

    def _stop_ring(self, message: Message) -> bytes:
        index, _ = message.unpack(messages.VRING_STATE)
        ring = self._ring(message, index)
        self._stop()
        ring.replace("kick", None)
        return messages.VRING_STATE.pack(index, ring.base)

    def _stop(self) -> None:
        if self._running is None:
            return
        self._running = None
        positions = self._device.stop()
        for ring, position in zip(self._rings, positions, strict=False):
            ring.base = position
        self._stopped_at = positions

    def _wanted(self) -> tuple[object, ...] | None:
        """Everything that a start of the rings depends on; `None` while they cannot run."""
        if self._features is None or not len(self._memory):
            return None
        started_enabled = not self._features & messages.PROTOCOL_FEATURES
        rings = [
            (ring.size, ring.address, ring.kick)
            if ring.size and ring.address and ring.kick is not None and (ring.enabled or started_enabled)
            else None
            for ring in self._rings
        ]
        if None in rings[:QUEUES_NEEDED]:
            return None
        return (self._features, self._memory_version, *rings)

    def _settle(self) -> None:
        """Start, stop or restart the rings, so that those run that should."""
        wanted = self._wanted()
        if wanted == self._running:
            return
        self._stop()
        if wanted is None or self._features is None:
            return
        rings = [
            self._describe(ring) if known else None
            for ring, known in zip(self._rings, wanted[2:], strict=True)
        ]
        bases = [ring.base for ring, known in zip(self._rings, wanted[2:], strict=True) if known]
        if self._stopped_at and bases != self._stopped_at[: len(bases)]:
            self._reset_device()
        if any(bases) and not self._stopped_at:
            # Before the rings run, because what the guest opens after that is not lost.
            self._device.lost()
        self._device.start(self._memory.guest_memory(), rings, self._features)
        self._running = wanted

    def _reset_device(self) -> None:
        self._device.reset()
        self._stopped_at = []

    def _describe(self, ring: _RingState) -> Ring:
        address, kick = ring.address, ring.kick
        assert address is not None  # noqa: S101 (`_wanted` says so)
        assert kick is not None  # noqa: S101 (as above)
        layout = QueueLayout(
            ring.size,
            self._memory.guest_address(address.descriptor_table),
            self._memory.guest_address(address.available_ring),
            self._memory.guest_address(address.used_ring),
        )
        return Ring(layout, ring.base, kick, ring.call)
