"""What a guest's kernel is asked for when a saved machine goes on: Linux's numbers, in order."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nitro_vmm.errors import GuestError
from nitro_vmm.snapshot import renewal
from nitro_vmm.snapshot.renewal import renew

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
NOW_NS = 1_700_000_000_123_456_789
NODE = b"/.nitro-vmm-random\0"
RANDOM_AT = 0x7FFF_0000
MKNOD, OPEN, UNLINK, IOCTL, CLOSE, NANOSLEEP, CLOCK_SETTIME = 133, 2, 87, 16, 3, 35, 227


class Init:
    """A guest's first program, and a kernel that fails where it is told to."""

    def __init__(self, *, fails: int = 0, errors: int = -1, random: int | None = RANDOM_AT) -> None:
        self.fails, self.errors, self.random = fails, errors, random
        self.calls: list[tuple[int, tuple[int | bytes, ...]]] = []
        self.written: list[tuple[int, bytes]] = []
        self.left = 0

    def find_random(self) -> int | None:
        return self.random

    def call(self, number: int, *arguments: int | bytes) -> int:
        assert not self.left
        self.calls.append((number, arguments))
        if number == self.fails:
            return self.errors
        return 7 if number == OPEN else 0

    def leave(self) -> None:
        self.left += 1

    def write(self, address: int, data: bytes) -> None:
        assert self.left, "what it has on its stack is put back before"
        self.written.append((address, data))


def renewed(init: Init, settled: Callable[[], bool] = lambda: True) -> Init:
    """Renew a program with the numbers 0, 1, 2 ... for random bytes."""
    program: Any = init
    renew(
        program,
        settled=settled,
        entropy=lambda count: bytes(range(count)),
        wall_clock_ns=lambda: NOW_NS,
    )
    return init


def test_the_kernel_gets_entropy_and_the_time() -> None:
    """A character device 1:9 is urandom; RNDADDENTROPY takes bits, bytes and the content (random(4))."""
    init = renewed(Init())

    add_entropy = 1 << 30 | 8 << 16 | ord("R") << 8 | 3  # _IOW('R', 0x03, int [2])
    reseed = ord("R") << 8 | 7  # _IO('R', 0x07)
    assert init.calls == [
        (MKNOD, (NODE, 0o020600, 1 << 8 | 8)),
        (OPEN, (NODE, 1)),
        (UNLINK, (NODE,)),
        (IOCTL, (7, add_entropy, struct.pack("<ii", 512, 64) + bytes(range(64)))),
        (IOCTL, (7, reseed)),
        (CLOSE, (7,)),
        (CLOCK_SETTIME, (0, struct.pack("<qq", 1_700_000_000, 123_456_789))),
    ]
    assert init.left == 1
    assert init.written == [(RANDOM_AT, bytes(range(16)))]


def test_a_program_without_random_bytes_gets_none() -> None:
    assert renewed(Init(random=None)).written == []


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (MKNOD, "make a device node"),
        (OPEN, "open its random number generator"),
        (UNLINK, "remove a device node"),
        (IOCTL, "take random numbers"),
        (CLOSE, "close its random number generator"),
        (CLOCK_SETTIME, "set its clock"),
    ],
)
def test_what_the_kernel_does_not_do_is_named(number: int, what: str) -> None:
    with pytest.raises(GuestError, match=rf"does not {what} \(error 1\)") as caught:
        renewed(Init(fails=number))

    assert caught.value.hint == "start it without one: --warm off"


def test_descriptor_0_is_one() -> None:
    init = renewed(Init(fails=OPEN, errors=0))

    assert init.calls[-2] == (CLOSE, (0,))


@pytest.mark.parametrize("times", [1, 1000])
def test_the_kernel_is_given_a_millisecond_again_and_again(times: int) -> None:
    looks = iter([False] * (times - 1) + [True])

    init = renewed(Init(), settled=lambda: next(looks))

    slept = [arguments for number, arguments in init.calls if number == NANOSLEEP]
    assert slept == [(struct.pack("<qq", 0, 1_000_000), 0)] * (times - 1)


def test_a_kernel_that_never_takes_notice_does_not_go_on() -> None:
    init = Init()

    with pytest.raises(GuestError, match="does not take notice of its new address"):
        renewed(init, settled=lambda: False)

    assert not init.left
    assert len([number for number, _ in init.calls if number == NANOSLEEP]) <= 1000


@pytest.mark.skipif(not HEADER.exists(), reason="there are no headers of the kernel")
def test_system_calls_have_linuxs_numbers() -> None:
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text()))

    for name in ("OPEN", "CLOSE", "IOCTL", "NANOSLEEP", "UNLINK", "MKNOD", "CLOCK_SETTIME"):
        assert getattr(renewal, name) == int(numbers[name.lower()])
