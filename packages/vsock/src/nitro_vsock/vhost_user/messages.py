"""The messages of the vhost-user protocol (QEMU, docs/interop/vhost-user.rst), as bytes and as values.

A message is a header of three 32-bit words (request, flags, payload size) and a payload, both in the
machine's byte order. File descriptors travel beside the bytes and belong to the message whose bytes
they came with. A stream socket keeps no message boundaries, so a reader must never read past the end of
a message, or it gives descriptors to the wrong one: `MessageDecoder` says how many bytes it wants next.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple, Self

from nitro_vsock.vhost_user.errors import VhostUserError

HEADER = struct.Struct("=III")
U64 = struct.Struct("=Q")
VRING_STATE = struct.Struct("=II")  # index, number
VRING_ADDRESS = struct.Struct("=IIQQQQ")  # index, flags, descriptors, used, available, log
REGION = struct.Struct("=QQQQ")  # guest-physical address, size, front-end address, offset in the file
MEMORY_TABLE = struct.Struct("=II")  # number of regions, padding
SINGLE_REGION = struct.Struct("=Q")  # padding before the region of ADD_MEM_REG and REM_MEM_REG
CONFIG = struct.Struct("=III")  # offset, size, flags

PAYLOAD_BYTES_MAX = 4096
"""No message of ours is longer, and rust-vmm refuses longer ones as well."""
DESCRIPTORS_MAX = 32
"""Per message, as rust-vmm; the protocol needs 8 (SET_MEM_TABLE)."""
TABLE_REGIONS_MAX = 8

VERSION = 1
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8

RING_INDEX_MASK = 0xFF
NO_DESCRIPTOR = 0x100  # in SET_VRING_KICK, _CALL and _ERR: no file descriptor came along


class Request(IntEnum):
    """What a front-end asks of a back-end ("Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38


class ProtocolFeature(IntFlag):
    """Extensions of the protocol itself ("Protocol features") that this package knows."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15


PROTOCOL_FEATURES = 1 << 30
"""VHOST_USER_F_PROTOCOL_FEATURES, a bit beside the virtio features."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of either direction. Whoever holds it owns its file descriptors."""

    request: int
    payload: bytes = b""
    descriptors: tuple[int, ...] = ()
    need_reply: bool = False
    reply: bool = False

    def encode(self) -> bytes:
        """Header and payload; the descriptors go with the first of these bytes."""
        flags = VERSION | (REPLY if self.reply else 0) | (NEED_REPLY if self.need_reply else 0)
        return HEADER.pack(self.request, flags, len(self.payload)) + self.payload

    @property
    def name(self) -> str:
        """The request's name in the specification, for messages to people."""
        try:
            return Request(self.request).name
        except ValueError:
            return f"request {self.request}"

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The payload's fields.

        Raises:
            VhostUserError: The payload has another length.
        """
        if len(self.payload) != layout.size:
            raise VhostUserError(f"{self.name}: payload of {len(self.payload)} bytes, must be {layout.size}")
        return layout.unpack(self.payload)

    def u64(self) -> int:
        """The payload as one 64-bit number; raises `VhostUserError` as `unpack` does."""
        return self.unpack(U64)[0]


class MessageDecoder:
    """Takes bytes and descriptors, at most `wanted` bytes at a time, and gives messages."""

    def __init__(self) -> None:
        self.wanted = HEADER.size
        self._buffer = bytearray()
        self._descriptors: list[int] = []

    @property
    def idle(self) -> bool:
        """Whether it is between two messages, which is where a peer may close the connection."""
        return not self._buffer

    def feed(self, data: bytes, descriptors: Sequence[int] = ()) -> Message | None:
        """Take up to `wanted` bytes; return the message that they complete, if any.

        Raises:
            VhostUserError: The header is not one of this protocol. The stream is of no more use, and
                `take_descriptors` returns what has to be closed.
        """
        if len(data) > self.wanted:
            raise ValueError(f"{len(data)} bytes, only {self.wanted} are wanted")
        self._buffer += data
        self._descriptors += descriptors
        self.wanted -= len(data)
        if len(self._descriptors) > DESCRIPTORS_MAX:
            raise VhostUserError(f"more than {DESCRIPTORS_MAX} file descriptors with one message")
        if self.wanted:
            return None
        request, flags, size = HEADER.unpack_from(self._buffer)
        if len(self._buffer) == HEADER.size:
            if flags & VERSION_MASK != VERSION:
                raise VhostUserError(
                    f"request {request}: version {flags & VERSION_MASK} of the protocol, not {VERSION}"
                )
            if size > PAYLOAD_BYTES_MAX:
                raise VhostUserError(
                    f"request {request}: payload of {size} bytes, at most {PAYLOAD_BYTES_MAX} are allowed"
                )
            self.wanted = size
        if self.wanted:
            return None
        message = Message(
            request,
            bytes(self._buffer[HEADER.size :]),
            self.take_descriptors(),
            need_reply=bool(flags & NEED_REPLY),
            reply=bool(flags & REPLY),
        )
        self._buffer.clear()
        self.wanted = HEADER.size
        return message

    def take_descriptors(self) -> tuple[int, ...]:
        """The descriptors of the unfinished message, which the caller has to close."""
        taken = tuple(self._descriptors)
        self._descriptors.clear()
        return taken


class MemoryRegion(NamedTuple):
    """A part of the guest's memory and where it lies in its file, all in bytes."""

    guest_address: int
    size: int
    frontend_address: int
    """Where the front-end sees it; vring addresses are given in these terms."""
    file_offset: int

    def __str__(self) -> str:
        return f"guest memory [{self.guest_address:#x}, {self.guest_address + self.size:#x})"

    @classmethod
    def table(cls, message: Message) -> list[Self]:
        """The regions of SET_MEM_TABLE.

        Raises:
            VhostUserError: The payload is not a table of 1 to 8 regions.
        """
        payload = message.payload
        count = MEMORY_TABLE.unpack_from(payload)[0] if len(payload) >= MEMORY_TABLE.size else 0
        if not 1 <= count <= TABLE_REGIONS_MAX:
            raise VhostUserError(f"{message.name}: {count} regions, must be 1 to {TABLE_REGIONS_MAX}")
        # QEMU always sends the whole table of eight; only the first `count` are meant.
        end = MEMORY_TABLE.size + count * REGION.size
        if len(payload) < end:
            raise VhostUserError(
                f"{message.name}: payload of {len(payload)} bytes, {count} regions need {end}"
            )
        return [cls(*fields) for fields in REGION.iter_unpack(payload[MEMORY_TABLE.size : end])]

    @classmethod
    def single(cls, message: Message) -> Self:
        """The region of ADD_MEM_REG and REM_MEM_REG; raises `VhostUserError` for another length."""
        size = SINGLE_REGION.size + REGION.size
        if len(message.payload) != size:
            raise VhostUserError(f"{message.name}: payload of {len(message.payload)} bytes, must be {size}")
        return cls(*REGION.unpack_from(message.payload, SINGLE_REGION.size))


class VringAddress(NamedTuple):
    """SET_VRING_ADDR: where a ring's three parts are, in the front-end's addresses."""

    ring: int
    flags: int
    descriptor_table: int
    used_ring: int
    available_ring: int
    log: int


def memory_table(regions: Sequence[MemoryRegion]) -> bytes:
    """The payload of SET_MEM_TABLE."""
    return MEMORY_TABLE.pack(len(regions), 0) + b"".join(REGION.pack(*region) for region in regions)
