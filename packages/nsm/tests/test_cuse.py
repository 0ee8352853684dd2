"""A device through the protocol of /dev/cuse, with a kernel and a program's memory that are Python."""

import errno
import struct
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_nsm import HostError, Nsm, NsmClient, NsmConfig, Root
from nitro_nsm.cuse import (
    IN_HEADER,
    INIT_IN,
    INIT_OUT,
    IOCTL_IN,
    IOCTL_OUT,
    IOVEC,
    OPEN_OUT,
    OUT_HEADER,
    CuseDevice,
    Opcode,
)
from nitro_nsm.ioctl import NSM_IOCTL, NSM_RAW
from nitro_nsm.testing import seeded_entropy

STRUCT_AT, REQUEST_AT, REPLY_AT = 0x1000, 0x2000, 0x4000
RETRIES_MAX = 8


class Kernel:
    """The kernel's side, as fs/fuse/cuse.c and ioctl.c have it, for a program with 64 KiB of memory."""

    def __init__(self, handle: Callable[[bytes], bytes]) -> None:
        self.memory = bytearray(1 << 16)
        self.meanwhile: Callable[[], None] = lambda: None
        self.rounds = 0
        self._device = CuseDevice(handle, "nsm")
        self._unique = count(2, 2)

    def call(self, opcode: int, body: bytes = b"") -> tuple[int, bytes]:
        """Send a message; the error and the body of the answer."""
        unique = next(self._unique)
        head = IN_HEADER.pack(IN_HEADER.size + len(body), opcode, unique, 1, 0, 0, 7, 0, 0)
        answer = self._device.receive(head + body)
        assert answer is not None
        length, error, of = OUT_HEADER.unpack_from(answer)
        assert (length, of) == (len(answer), unique)
        return error, answer[OUT_HEADER.size :]

    def ioctl(self, command: int, address: int) -> int:
        """What `ioctl` returns, or a negative error."""
        inward: list[tuple[int, int]] = []
        outward: list[tuple[int, int]] = []
        for self.rounds in range(1, RETRIES_MAX):
            data = b"".join(self.memory[base : base + length] for base, length in inward)
            room = sum(length for _, length in outward)
            error, body = self.call(
                Opcode.IOCTL, IOCTL_IN.pack(0, 2, command, address, len(data), room) + data
            )
            assert error == 0
            result, flags, ins, outs = IOCTL_OUT.unpack_from(body)
            rest = body[IOCTL_OUT.size :]
            if not flags & 4:
                assert (flags, ins, outs) == (0, 0, 0)
                assert len(rest) <= room
                for base, length in outward:
                    self.memory[base : base + len(rest[:length])] = rest[:length]
                    rest = rest[length:]
                return int(result)
            assert (result, flags) == (0, 4)
            parts = list(IOVEC.iter_unpack(rest))
            assert len(parts) == ins + outs
            inward, outward = parts[:ins], parts[ins:]
            self.meanwhile()
        raise AssertionError("the device wants more and more")

    def ask(self, request: bytes, room: int = 0x3000) -> bytes:
        """What a program does to ask the module."""
        self.memory[STRUCT_AT : STRUCT_AT + NSM_RAW.size] = NSM_RAW.pack(
            REQUEST_AT, len(request), REPLY_AT, room
        )
        self.memory[REQUEST_AT : REQUEST_AT + len(request)] = request
        result = self.ioctl(NSM_IOCTL, STRUCT_AT)
        if result != 0:
            raise OSError(-result, "ioctl")
        *_, length = NSM_RAW.unpack_from(self.memory, STRUCT_AT)
        return bytes(self.memory[REPLY_AT : REPLY_AT + length])


@pytest.fixture
def kernel() -> Kernel:
    root = Root.create("test", entropy=seeded_entropy(5))
    return Kernel(Nsm(NsmConfig(pcrs={0: b"\1" * 48}), root=root).handle)


def test_the_numbers_are_those_of_linux() -> None:
    sizes = [IN_HEADER.size, OUT_HEADER.size, INIT_IN.size, INIT_OUT.size, OPEN_OUT.size]

    assert sizes == [40, 16, 16, 72, 16]
    assert [IOCTL_IN.size, IOCTL_OUT.size, IOVEC.size, NSM_RAW.size] == [32, 16, 16, 32]
    assert NSM_IOCTL == 0xC0200A00
    assert [*Opcode] == [14, 18, 36, 39, 4096]


def test_the_device_says_its_name_and_wants_unrestricted_ioctls(kernel: Kernel) -> None:
    error, body = kernel.call(Opcode.CUSE_INIT, INIT_IN.pack(7, 31, 0, 1))

    major, minor, _, flags, read, write, *_ = INIT_OUT.unpack_from(body)
    assert (error, major, minor, flags) == (0, 7, 31, 1)
    assert (read, write) == (0x1000 + 32, 0x3000 + 32)
    assert body[: INIT_OUT.size] == struct.pack("=8I40x", 7, 31, 0, 1, 0x1020, 0x3020, 0, 0)
    assert body[INIT_OUT.size :] == b"DEVNAME=nsm\0"


@pytest.mark.parametrize("said", [INIT_IN.pack(7, 30, 0, 1), INIT_IN.pack(7, 41, 0, 0), b""])
def test_a_kernel_without_these(kernel: Kernel, said: bytes) -> None:
    with pytest.raises(HostError, match="lacks unrestricted ioctls") as caught:
        kernel.call(Opcode.CUSE_INIT, said)

    assert "nsm preload" in caught.value.hint


def test_a_program_asks_the_module(kernel: Kernel) -> None:
    assert kernel.call(Opcode.OPEN, struct.pack("=II", 2, 0)) == (0, bytes(16))

    client = NsmClient(kernel.ask)
    value = client.describe_pcr(0).value
    document = client.attest(user_data=b"x" * 1024)

    assert kernel.rounds == 3
    assert kernel.call(Opcode.RELEASE) == (0, b"")
    assert value == b"\1" * 48
    assert len(document) > 4000


@pytest.mark.parametrize("room", [0, 1, 10, 0x3000, 0x3001, 1 << 40])
def test_the_reply_ends_where_its_room_does(kernel: Kernel, room: int) -> None:
    whole = kernel.ask(b"\x6bDescribeNSM")

    assert kernel.ask(b"\x6bDescribeNSM", room) == whole[:room]


@pytest.mark.parametrize("length", [0x1000, 0x1001, 1 << 63])
def test_long_requests_are_refused_as_by_linux(kernel: Kernel, length: int) -> None:
    kernel.memory[STRUCT_AT : STRUCT_AT + 32] = NSM_RAW.pack(REQUEST_AT, length, REPLY_AT, 0x3000)

    result = kernel.ioctl(NSM_IOCTL, STRUCT_AT)

    assert result == (0 if length == 0x1000 else -errno.EMSGSIZE)


def test_another_ioctl_is_none(kernel: Kernel) -> None:
    assert kernel.ioctl(0x5401, STRUCT_AT) == -errno.EINVAL


def test_a_struct_that_changes_meanwhile_is_read_as_it_came_last() -> None:
    kernel = Kernel(lambda request: request + b", is it")

    def shorten() -> None:
        if kernel.rounds == 2:
            kernel.memory[STRUCT_AT : STRUCT_AT + 32] = NSM_RAW.pack(REQUEST_AT, 3, REPLY_AT, 5)

    kernel.meanwhile = shorten
    answered = kernel.ask(b"request")

    assert answered == b"req, "


@pytest.mark.parametrize("opcode", [1, 15, 16, 40, 4097])
def test_what_the_device_does_not_do_is_said(kernel: Kernel, opcode: int) -> None:
    assert kernel.call(opcode) == (-errno.ENOSYS, b"")


def test_an_interrupt_needs_no_answer() -> None:
    device = CuseDevice(bytes, "nsm")

    assert device.receive(IN_HEADER.pack(48, Opcode.INTERRUPT, 3, 0, 0, 0, 0, 0, 0) + bytes(8)) is None


@given(st.binary(max_size=200), st.sampled_from(Opcode))
def test_any_bytes_are_answered_or_none_of_the_protocol(data: bytes, opcode: Opcode) -> None:
    device = CuseDevice(lambda request: request, "nsm")
    messages = (data, IN_HEADER.pack(0, opcode, 5, 0, 0, 0, 0, 0, 0) + data)

    for message in messages:
        try:
            answer = device.receive(message)
        except HostError:
            continue
        assert answer is None or OUT_HEADER.unpack_from(answer)[0] == len(answer)
