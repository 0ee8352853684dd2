"""How fast the guest's time stamp counter runs: it is the host's, and no interface names its frequency."""

import time
from typing import Final, NamedTuple

from nitro_vmm.accel.unicorn.library import Library
from nitro_vmm.accel.unicorn.native import LIBRARY
from nitro_vmm.accel.unicorn.public import Register

CODE_ADDRESS: Final = 0x1000
# rdtsc; hlt
CODE: Final = bytes.fromhex("0f31f4")
TRANSLATION_BUFFER_BYTES: Final = 1 << 20
ATTEMPTS: Final = 5
INTERVAL_NS_MIN: Final = 20_000_000


class TscSample(NamedTuple):
    """The counter at a moment of the monotonic clock."""

    monotonic_ns: int
    ticks: int


class _Reader:
    def __init__(self) -> None:
        import unicorn  # noqa: PLC0415 - the binding takes long to import, and the native part needs no engine

        self._uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self._uc.ctl_set_tcg_buffer_size(TRANSLATION_BUFFER_BYTES)
        self._uc.mem_map(CODE_ADDRESS, 0x1000)
        self._uc.mem_write(CODE_ADDRESS, CODE)

    def read(self) -> tuple[int, TscSample]:
        before = time.monotonic_ns()
        self._uc.emu_start(CODE_ADDRESS, 0)
        after = time.monotonic_ns()
        ticks = self._uc.reg_read(Register.RDX) << 32 | self._uc.reg_read(Register.RAX)
        return after - before, TscSample((before + after) // 2, ticks)


class _NativeReader:
    def __init__(self, library: Library) -> None:
        self._library = library

    def read(self) -> tuple[int, TscSample]:
        before = time.monotonic_ns()
        ticks = self._library.read_host_tsc()
        after = time.monotonic_ns()
        return after - before, TscSample((before + after) // 2, ticks)


def read_tsc() -> TscSample:
    """The counter as a guest reads it, now; the best of a few attempts, so right within microseconds."""
    reader = _Reader() if LIBRARY is None else _NativeReader(LIBRARY)
    return min(reader.read() for _ in range(ATTEMPTS))[1]


def measure_tsc_hz(since: TscSample) -> int:
    """The frequency, in whole kilohertz as Linux counts it; the longer ago ``since`` was, the better."""
    remaining_ns = since.monotonic_ns + INTERVAL_NS_MIN - time.monotonic_ns()
    if remaining_ns > 0:
        time.sleep(remaining_ns / 1e9)
    now = read_tsc()
    hz = (now.ticks - since.ticks) * 1_000_000_000 // (now.monotonic_ns - since.monotonic_ns)
    return hz // 1000 * 1000
