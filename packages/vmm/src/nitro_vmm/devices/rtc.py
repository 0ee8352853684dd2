"""The PC's clock and its battery-backed memory: the guest learns the date here.

Source: Motorola MC146818A datasheet; the century at 0x32 is the PC's custom, which Linux knows. Alarm,
periodic and update-ended interrupts never come (register C reads 0).

The time is UTC from the given clock, plus as much as the guest has set it ahead. "No update in progress" in
register A promises 244 µs in which the registers stay as they are (section "Update cycle"). A guest whose
processor is emulated takes longer to read them all, so the registers are held for longer here.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from nitro_vmm.devices.state import is_whole, require, require_bytes, require_whole, require_whole_tuple

INDEX: Final = 0
DATA: Final = 1

SECONDS: Final = 0x00
MINUTES: Final = 0x02
HOURS: Final = 0x04
WEEKDAY: Final = 0x06
DAY: Final = 0x07
MONTH: Final = 0x08
YEAR: Final = 0x09
REGISTER_A: Final = 0x0A
REGISTER_B: Final = 0x0B
REGISTER_C: Final = 0x0C
REGISTER_D: Final = 0x0D
CENTURY: Final = 0x32
TIME_REGISTERS: Final = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)

A_32768_HZ_1024_HZ: Final = 0x26
B_SET: Final = 0x80
B_BINARY: Final = 0x04
B_24_HOURS: Final = 0x02
D_VALID: Final = 0x80
HOUR_PM: Final = 0x80

MEMORY_BYTES: Final = 128
HELD_NS: Final = 10_000_000
"""How long the time stands still after the guest has read register A."""
NS_PER_S: Final = 1_000_000_000
YEAR_MAX: Final = 9999
AHEAD_S_MAX: Final = 253_402_300_799
"""How far the clock can be from the real time, as long as both are between 1970 and `YEAR_MAX`, seconds."""


class RtcState(NamedTuple):
    """The clock as a guest left it. The time itself is not part of it: a restored clock shows the host's."""

    ahead_s: int
    """How far the guest has set the clock ahead of the real time, seconds; negative if behind."""
    selected: int
    """Which register the data port shows."""
    memory: bytes
    """The battery-backed memory, `MEMORY_BYTES` long; its bytes at the time's registers have no meaning."""
    held_s: int
    """The time at which the registers are held, seconds since 1970, UTC, by the guest's setting."""
    held_for_ns: int
    """How long they are still held, nanoseconds; 0 when they are not."""
    being_set: tuple[int, ...] | None
    """What `TIME_REGISTERS` hold, in that order, while the guest sets them (`B_SET`); else `None`."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        good = is_whole(self.ahead_s, AHEAD_S_MAX, least=-AHEAD_S_MAX)
        require(self, "ahead_s", good, f"a whole number from -{AHEAD_S_MAX} to {AHEAD_S_MAX}")
        require_whole(self, selected=MEMORY_BYTES - 1, held_s=2 * AHEAD_S_MAX, held_for_ns=HELD_NS)
        require_bytes(self, "memory", MEMORY_BYTES, least=MEMORY_BYTES)
        if self.being_set is not None:
            require_whole_tuple(
                self, "being_set", 0xFF, lengths=range(len(TIME_REGISTERS), len(TIME_REGISTERS) + 1)
            )


class Rtc:
    """The index and data ports, and the clock behind them.

    Args:
        clock_ns: The real time: nanoseconds since 1970, UTC.
    """

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._ahead_s = 0
        self._index = 0
        self._memory = bytearray(MEMORY_BYTES)
        self._memory[REGISTER_A] = A_32768_HZ_1024_HZ
        self._memory[REGISTER_B] = B_24_HOURS
        self._memory[REGISTER_D] = D_VALID
        self._held_s = 0
        self._held_until_ns = 0
        self._being_set: dict[int, int] | None = None

    def state(self) -> RtcState:
        """What to save so that `restore` goes on from here."""
        now_ns = self._clock_ns()
        held = self._is_held(now_ns)
        return RtcState(
            ahead_s=self._ahead_s,
            selected=self._index,
            memory=bytes(self._memory),
            held_s=self._held_s if held else 0,
            held_for_ns=self._held_until_ns - now_ns if held else 0,
            being_set=None if self._being_set is None else tuple(self._being_set[i] for i in TIME_REGISTERS),
        )

    def restore(self, state: RtcState) -> None:
        """Go on from a saved state, at the real time of now.

        A guest that was saved in the middle of reading the time reads the rest of that time: what it puts
        together must not be half of the one and half of the other.
        """
        self._ahead_s = state.ahead_s
        self._index = state.selected
        self._memory[:] = state.memory
        self._held_s = state.held_s
        self._held_until_ns = self._clock_ns() + state.held_for_ns if state.held_for_ns else 0
        being_set = state.being_set
        self._being_set = None if being_set is None else dict(zip(TIME_REGISTERS, being_set, strict=True))

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - the ports are bytes
        """The register that the index names; the index itself cannot be read."""
        if offset != DATA:
            return 0xFF
        index = self._index
        if index in TIME_REGISTERS:
            fields = self._being_set if self._being_set is not None else self._fields()
            return self._encode(index, fields[index]) & 0xFF
        if index == REGISTER_A:
            now_ns = self._clock_ns()
            self._held_s = self._shown_s(now_ns)
            self._held_until_ns = now_ns + HELD_NS
        return self._memory[index]

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002 - the ports are bytes
        """Choose a register, or write the chosen one; a new time counts from then on."""
        value &= 0xFF
        index = self._index
        if offset == INDEX:
            self._index = value & MEMORY_BYTES - 1
        elif offset != DATA or index in (REGISTER_C, REGISTER_D):
            return
        elif index in TIME_REGISTERS:
            self._write_time(index, value)
        elif index == REGISTER_B:
            self._memory[index] = value
            self._write_set(being_set=bool(value & B_SET))
        else:
            self._memory[index] = value & 0x7F if index == REGISTER_A else value

    def _is_held(self, now_ns: int) -> bool:
        # The real time may be set back at any moment: then the end of the hold is too far ahead to be true.
        return 0 < self._held_until_ns - now_ns <= HELD_NS

    def _shown_s(self, now_ns: int) -> int:
        # Not before 1970, to which a real time that goes back could take a clock that the guest has set back.
        return max(now_ns // NS_PER_S + self._ahead_s, 0)

    def _fields(self) -> dict[int, int]:
        """The time as the registers show it now, by register."""
        now_ns = self._clock_ns()
        now = time.gmtime(self._held_s if self._is_held(now_ns) else self._shown_s(now_ns))
        weekday = (now.tm_wday + 1) % 7 + 1
        century, year = divmod(now.tm_year, 100)
        values = (now.tm_sec, now.tm_min, now.tm_hour, weekday, now.tm_mday, now.tm_mon, year, century)
        return dict(zip(TIME_REGISTERS, values, strict=True))

    def _write_time(self, index: int, value: int) -> None:
        fields = self._being_set if self._being_set is not None else self._fields()
        fields[index] = self._decode(index, value)
        if self._being_set is None:
            self._set_clock(fields)

    def _write_set(self, *, being_set: bool) -> None:
        if being_set and self._being_set is None:
            self._being_set = self._fields()
        elif not being_set and self._being_set is not None:
            self._set_clock(self._being_set)
            self._being_set = None

    def _set_clock(self, fields: dict[int, int]) -> None:
        """Go on from ``fields``; a date that does not exist is ignored."""
        year = fields[CENTURY] * 100 + fields[YEAR]
        month, day, hour, minute, second = (fields[i] for i in (MONTH, DAY, HOURS, MINUTES, SECONDS))
        if not (1970 <= year <= YEAR_MAX and 1 <= month <= 12 and hour < 24 and minute < 60 and second < 60):
            return
        import calendar  # noqa: PLC0415 - it loads `datetime`, and guests seldom set the clock

        if not 1 <= day <= calendar.monthrange(year, month)[1]:
            return
        wanted_s = calendar.timegm((year, month, day, hour, minute, second))
        self._ahead_s = wanted_s - self._clock_ns() // NS_PER_S
        self._held_until_ns = 0

    def _encode(self, index: int, value: int) -> int:
        pm = 0
        if index == HOURS and not self._memory[REGISTER_B] & B_24_HOURS:
            pm = HOUR_PM if value >= 12 else 0
            value = (value - 1) % 12 + 1
        if not self._memory[REGISTER_B] & B_BINARY:
            value = value // 10 << 4 | value % 10
        return value | pm

    def _decode(self, index: int, value: int) -> int:
        pm = 0
        twelve_hours = index == HOURS and not self._memory[REGISTER_B] & B_24_HOURS
        if twelve_hours:
            pm, value = 12 if value & HOUR_PM else 0, value & ~HOUR_PM
        if not self._memory[REGISTER_B] & B_BINARY:
            value = (value >> 4) * 10 + (value & 0xF)
        return value % 12 + pm if twelve_hours else value
