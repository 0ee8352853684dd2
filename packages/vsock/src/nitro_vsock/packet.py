"""The vsock packet header and its numbers (virtio 1.3 §5.10.6; Linux, ``uapi/linux/virtio_vsock.h``)."""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

# virtio_vsock_hdr: src_cid dst_cid src_port dst_port len type op flags buf_alloc fwd_cnt
HEADER: Final = struct.Struct("<QQIIIHHIII")
HEADER_BYTES: Final = 44
assert HEADER.size == HEADER_BYTES  # noqa: S101 (a fact of the format, checked at import)

COUNTER_MASK: Final = 0xFFFF_FFFF
"""``fwd_cnt`` and the like are free-running 32-bit counters."""

# Device feature bits (virtio 1.3 §5.10.3).
VSOCK_F_STREAM: Final = 0
VSOCK_F_SEQPACKET: Final = 1

EVENT_TRANSPORT_RESET: Final = 0
EVENT_BYTES: Final = 4

ANY_CID: Final = 0xFFFF_FFFF
HOST_CID: Final = 2
PARENT_CID: Final = 3
"""The parent instance's address as AWS Nitro Enclaves see it."""


class Op(IntEnum):
    """What a packet is for."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class SocketType(IntEnum):
    """Whether a connection carries a stream of bytes or messages."""

    STREAM = 1
    SEQPACKET = 2


class Shutdown(IntEnum):
    """Flags of SHUTDOWN: what its sender will not do any more."""

    RECEIVE = 1
    SEND = 2
    BOTH = 3


class Sequence(IntEnum):
    """Flags of RW on SEQPACKET connections: the packet ends a message, a record."""

    END_OF_MESSAGE = 1
    END_OF_RECORD = 2


class Header(NamedTuple):
    """A packet's header, field by field; for tests and control paths, the data path uses plain tuples."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int

    def pack(self) -> bytes:
        """The 44 bytes on the wire."""
        return HEADER.pack(*self)


class Address(NamedTuple):
    """What identifies a connection of one guest: its port, and the other end's port and CID."""

    guest_port: int
    host_port: int
    host_cid: int
