"""The vsock packet header and its numbers (virtio 1.3 §5.10.6; Linux, ``uapi/linux/virtio_vsock.h``)."""

import struct
from typing import Final, NamedTuple

# virtio_vsock_hdr: src_cid dst_cid src_port dst_port len type op flags buf_alloc fwd_cnt
HEADER: Final = struct.Struct("<QQIIIHHIII")
HEADER_BYTES: Final = 44
assert HEADER.size == HEADER_BYTES  # noqa: S101 (a fact of the format, checked at import)

COUNTER_MASK: Final = 0xFFFF_FFFF
"""``fwd_cnt`` and its like are free-running 32-bit counters on the wire."""


class Op:
    """What a packet is for (virtio 1.3 §5.10.6).

    They are plain numbers because every packet is compared with them, and a member of an enum takes a
    look-up.
    """

    REQUEST: Final = 1
    RESPONSE: Final = 2
    RST: Final = 3
    SHUTDOWN: Final = 4
    RW: Final = 5
    CREDIT_UPDATE: Final = 6
    CREDIT_REQUEST: Final = 7


class Shutdown:
    """Flags of a SHUTDOWN packet: what its sender will not do any more (virtio 1.3 §5.10.6.5)."""

    RECEIVE: Final = 1
    SEND: Final = 2
    BOTH: Final = 3


class Sequence:
    """Flags of RW packets with messages: the packet ends a message, or a record (virtio 1.3 §5.10.6.6.1)."""

    END_OF_MESSAGE: Final = 1
    END_OF_RECORD: Final = 2


class Header(NamedTuple):
    """A packet's header, field by field. It is for tests and drivers; the device uses plain tuples."""

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


Fields = tuple[int, int, int, int, int, int, int, int, int, int]
"""A header as `HEADER` unpacks it, in the order of `Header`'s fields."""

Address = tuple[int, int, int]
"""What identifies a connection of one guest: the guest's port, the other end's port, the other end's CID."""
