"""The module as a character device of this machine: the protocol of /dev/cuse, bytes in and bytes out.

The kernel makes the device and passes on what programs do with it, one message a `read` of /dev/cuse, and one
answer a `write` (linux/fuse.h, protocol 7.31 and later). Numbers are of the machine's byte order. Opening and
closing need nothing.

An ioctl takes three messages, because its argument points to a struct that points to more, and the kernel
fetches only what it has been told of:

1. It comes with the argument's address alone. We ask for the struct that is there.
2. It comes with the struct, which names the request and the room for the reply. We ask for these.
3. It comes with the struct and the request. We answer with the struct, in which the reply's length stands
   now, and the reply.

The struct may change between 2 and 3, because the program's other threads run; what counts is what came in 3.
"""

import errno
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from nitro_nsm.errors import HostError
from nitro_nsm.ioctl import NSM_IOCTL, NSM_RAW
from nitro_nsm.module import REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX

# Layouts of linux/fuse.h, in the order of the wire.
IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
"""fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
OUT_HEADER: Final = struct.Struct("=IiQ")
"""fuse_out_header: len, error (negative), unique."""
INIT_IN: Final = struct.Struct("=IIII")
"""cuse_init_in: major, minor, unused, flags."""
INIT_OUT: Final = struct.Struct("=IIIIIIII40x")
"""cuse_init_out: major, minor, unused, flags, max_read, max_write, dev_major, dev_minor, spare."""
OPEN_OUT: Final = struct.Struct("=QIi")
"""fuse_open_out: fh, open_flags, backing_id."""
IOCTL_IN: Final = struct.Struct("=QIIQII")
"""fuse_ioctl_in: fh, flags, cmd, arg, in_size, out_size."""
IOCTL_OUT: Final = struct.Struct("=iIII")
"""fuse_ioctl_out: result, flags, in_iovs, out_iovs."""
IOVEC: Final = struct.Struct("=QQ")
"""fuse_ioctl_iovec: base, len."""

FUSE_VERSION: Final = (7, 31)
CUSE_UNRESTRICTED_IOCTL: Final = 1
FUSE_IOCTL_RETRY: Final = 1 << 2
MESSAGE_BYTES_MAX: Final = 1 << 17
"""How much a `read` of /dev/cuse must have room for; the kernel's own bound is 32 pages and a header."""


class Opcode(IntEnum):
    """What the kernel asks for, as far as a character device of ours is concerned."""

    OPEN = 14
    RELEASE = 18
    INTERRUPT = 36
    IOCTL = 39
    CUSE_INIT = 4096


class CuseDevice:
    """A device that answers as /dev/nsm does.

    Args:
        handle: The module: takes a request and returns its reply.
        name: Of the device, below /dev.
    """

    def __init__(self, handle: Callable[[bytes], bytes], name: str) -> None:
        self._handle = handle
        self._name = name.encode()

    def receive(self, message: bytes) -> bytes | None:
        """Take what a `read` of /dev/cuse returned, and return what to `write`; `None` is nothing.

        Raises:
            HostError: The kernel's protocol is another one.
        """
        if len(message) < IN_HEADER.size:
            raise HostError(f"/dev/cuse sent {len(message)} bytes, which are no message")
        _, opcode, unique, *_ = IN_HEADER.unpack_from(message)
        body = message[IN_HEADER.size :]
        match opcode:
            case Opcode.CUSE_INIT:
                return _answer(unique, self._init(body))
            case Opcode.OPEN:
                return _answer(unique, OPEN_OUT.pack(0, 0, 0))
            case Opcode.RELEASE:
                return _answer(unique, b"")
            case Opcode.IOCTL if len(body) >= IOCTL_IN.size:
                return _answer(unique, self._ioctl(body))
            case Opcode.INTERRUPT:
                return None  # answers come at once, so there is nothing to interrupt
        return _refusal(unique, errno.ENOSYS)

    def _init(self, body: bytes) -> bytes:
        major, minor, _, flags = INIT_IN.unpack_from(body.ljust(INIT_IN.size, b"\0"))
        if (major, minor) < FUSE_VERSION or not flags & CUSE_UNRESTRICTED_IOCTL:
            raise HostError(
                f"this kernel's CUSE is {major}.{minor}, flags {flags:#x}, and lacks unrestricted ioctls",
                hint="Linux 5.4 or later has them; or preload a library: nsm preload",
            )
        limits = (REQUEST_BYTES_MAX + NSM_RAW.size, RESPONSE_BYTES_MAX + NSM_RAW.size)
        head = INIT_OUT.pack(*FUSE_VERSION, 0, CUSE_UNRESTRICTED_IOCTL, *limits, 0, 0)
        return head + b"DEVNAME=" + self._name + b"\0"

    def _ioctl(self, body: bytes) -> bytes:
        _, _, command, address, in_size, out_size = IOCTL_IN.unpack_from(body)
        data = body[IOCTL_IN.size : IOCTL_IN.size + in_size]
        if command != NSM_IOCTL:
            return _result(-errno.EINVAL)
        here = (address, NSM_RAW.size)
        if len(data) < NSM_RAW.size:
            return _retry([here], [])
        request_at, request_bytes, reply_at, room = NSM_RAW.unpack_from(data)
        if request_bytes > REQUEST_BYTES_MAX:
            return _result(-errno.EMSGSIZE)
        room = min(room, RESPONSE_BYTES_MAX)
        if in_size != NSM_RAW.size + request_bytes or out_size != NSM_RAW.size + room:
            return _retry([here, (request_at, request_bytes)], [here, (reply_at, room)])
        reply = self._handle(data[NSM_RAW.size :])[:room]
        return _result(0) + NSM_RAW.pack(request_at, request_bytes, reply_at, len(reply)) + reply


def _answer(unique: int, body: bytes) -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def _refusal(unique: int, error: int) -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size, -error, unique)


def _result(result: int) -> bytes:
    return IOCTL_OUT.pack(result, 0, 0, 0)


def _retry(wanted: list[tuple[int, int]], room: list[tuple[int, int]]) -> bytes:
    """Have the ioctl come again, with these parts of the program's memory."""
    head = IOCTL_OUT.pack(0, FUSE_IOCTL_RETRY, len(wanted), len(room))
    return head + b"".join(IOVEC.pack(*part) for part in (*wanted, *room))
