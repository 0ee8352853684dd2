"""What a guest needs to live a second life: new random numbers, and the time of now.

Two guests that go on from one saved machine have the same random number generator, and would draw the same
keys. The kernel cannot know that it was saved. So before the first instruction of its first program, we make
system calls in this program's name (`nitro_vmm.machine.program`):

* a device node for /dev/random, opened and removed, because there is no /dev yet;
* RNDADDENTROPY gives the generator 64 new bytes, and RNDRESEEDCRNG (Linux 4.17) has it draw a new key at
  once. The kernel's generators for each processor, and its stocks of numbers for its own use, are of the old
  key and so are thrown away (Linux, drivers/char/random.c).
* clock_settime sets the time of day. The monotonic clock goes on from where it was, so nothing times out.

The 16 random bytes that the kernel had already given the first program (AT_RANDOM), of which its C library
makes its stack's canary, are replaced in its memory.
"""

import os
import struct
from collections.abc import Callable
from typing import Final

from nitro_vmm.errors import GuestError
from nitro_vmm.machine.program import AT_RANDOM_BYTES, Program

NODE: Final = b"/.nitro-vmm-random\0"
CHARACTER_DEVICE_0600: Final = 0o020600
RANDOM_DEVICE: Final = 1 << 8 | 8
ENTROPY_BYTES: Final = 64
NS_PER_S: Final = 1_000_000_000

# Linux, arch/x86/entry/syscalls/syscall_64.tbl
OPEN: Final = 2
CLOSE: Final = 3
IOCTL: Final = 16
NANOSLEEP: Final = 35
UNLINK: Final = 87
MKNOD: Final = 133
CLOCK_SETTIME: Final = 227

CLOCK_REALTIME: Final = 0
# Linux, include/uapi/linux/random.h
RNDADDENTROPY: Final = 0x4008_5203
RNDRESEEDCRNG: Final = 0x5207

SETTLE_NS: Final = 1_000_000
SETTLE_TIMES_MAX: Final = 1000


def renew(
    program: Program,
    *,
    settled: Callable[[], bool],
    entropy: Callable[[int], bytes] = os.urandom,
    wall_clock_ns: Callable[[], int],
) -> None:
    """Give the guest new random numbers and the time of now.

    Args:
        program: Its first one, which has run no instruction.
        settled: Whether the kernel has taken notice of what else is new; it is given time until it has.
        entropy: Returns as many random bytes as it is asked for.
        wall_clock_ns: Nanoseconds since 1970.

    Raises:
        GuestError: The kernel does not do it. Then the guest must not go on.
        MachineOverError: The machine has ended.
    """
    random = program.find_random()
    _check(program.call(MKNOD, NODE, CHARACTER_DEVICE_0600, RANDOM_DEVICE), "make a device node")
    fd = program.call(OPEN, NODE, os.O_WRONLY)
    _check(program.call(UNLINK, NODE), "remove a device node")
    _check(fd, "open its random number generator")
    pool = struct.pack("<ii", 8 * ENTROPY_BYTES, ENTROPY_BYTES) + entropy(ENTROPY_BYTES)
    _check(program.call(IOCTL, fd, RNDADDENTROPY, pool), "take random numbers")
    _check(program.call(IOCTL, fd, RNDRESEEDCRNG), "renew its random number generator")
    _check(program.call(CLOSE, fd), "close its random number generator")
    for _ in range(SETTLE_TIMES_MAX):
        if settled():
            break
        program.call(NANOSLEEP, struct.pack("<qq", 0, SETTLE_NS), 0)
    else:
        raise GuestError("the guest's kernel does not take notice of its new address")
    now = struct.pack("<qq", *divmod(wall_clock_ns(), NS_PER_S))
    _check(program.call(CLOCK_SETTIME, CLOCK_REALTIME, now), "set its clock")
    program.leave()
    if random is not None:
        program.write(random, entropy(AT_RANDOM_BYTES))


def _check(result: int, what: str) -> None:
    if result < 0:
        raise GuestError(
            f"the guest's kernel does not {what} (error {-result}), so it cannot go on from a saved machine",
            hint="start it without one: --warm off",
        )
