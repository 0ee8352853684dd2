"""Runs a guest with the native part: its hooks are in C, and Python is asked for devices only."""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from typing import Final

from nitro_vmm.accel.unicorn.engine import Bus, Stopped
from nitro_vmm.accel.unicorn.identity import Leaf
from nitro_vmm.accel.unicorn.library import ArmTimer, Board, Library, ReadDevice, WriteBytes, WriteDevice
from nitro_vmm.accel.unicorn.library import Leaf as NativeLeaf
from nitro_vmm.accel.unicorn.private import engine_address, mismatch
from nitro_vmm.accel.unicorn.public import Uc
from nitro_vmm.address_map import COM1, RamRange

ENDINGS: Final = (
    *(Stopped.HALTED, Stopped.HALTED, Stopped.ASKED, Stopped.TRIPLE_FAULT, Stopped.CRASHED),
    *(Stopped.PROGRAM, Stopped.PAGE),
)
"""By the number that ``nitro_run`` returns."""
WAITING: Final = 1
"""The second of them: halted, and an interrupt wakes the processor."""


class NativeEngine:
    """See `Engine`.

    Args:
        library: The native part.
        uc: The engine, whose layout is proved and whose RAM is mapped.
        bus: Where accesses go that are not to RAM.
        tsc_hz: The frequency of the time stamp counter, as CPUID tells it.
        ram: The RAM's addresses, and where each is in this process.
        holes: The addresses without RAM.
        leaves: CPUID.

    Raises:
        HostError: Unicorn is not the one that we know.
    """

    def __init__(
        self,
        library: Library,
        uc: Uc,
        bus: Bus,
        *,
        tsc_hz: int,
        ram: Sequence[tuple[RamRange, int]],
        holes: Sequence[RamRange],
        leaves: dict[int, Leaf],
    ) -> None:
        self._library = library
        self.interrupts_enabled = False
        """See `Engine`."""
        self._error: BaseException | None = None
        self._words: list[ctypes.c_uint32] = []
        """What `share_word` was given."""
        self._board = Board(
            ReadDevice(self._reader(bus.read_port)),
            WriteDevice(self._writer(bus.write_port)),
            ReadDevice(self._reader(bus.read_memory)),
            WriteDevice(self._writer(bus.write_memory)),
            ArmTimer(self._timer(bus.arm_timer)),
            WriteBytes(self._writer(_Bytes(bus).write)),
        )
        reason = ctypes.c_char_p()
        self._machine = library.attach(engine_address(uc), self._board, reason)
        if not self._machine:
            raise mismatch((reason.value or b"").decode())
        # It holds the engine, which is closed after the machine is detached from it and never before: neither
        # the collector of cycles nor the interpreter's end heeds the order of `__del__`. The board ends with
        # us, and can be referred to weakly when we are compiled, too.
        weakref.finalize(self._board, _detach, library, self._machine, uc)
        library.set_console(self._machine, COM1)
        library.set_tsc_frequency(self._machine, tsc_hz)
        for (address, size), host in ram:
            if not library.add_ram(self._machine, address, size, host):
                raise mismatch("no memory for the state of pages")
        for address, size in holes:
            if error := library.map_hole(self._machine, address, size):
                raise mismatch(error.decode())
        for number, values in leaves.items():
            if not library.add_leaf(self._machine, NativeLeaf(number, *values)):
                raise mismatch("too many leaves")
        if not library.limit_features(self._machine):
            raise mismatch("the processor's features are elsewhere")

    @property
    def crash(self) -> str:
        """See `Engine`."""
        text: bytes = self._library.crash(self._machine)
        return text.decode(errors="replace")

    @property
    def is_at_program(self) -> bool:
        """See `Engine`."""
        return bool(self._library.is_at_program(self._machine))

    def run(self) -> Stopped:
        """See `Engine`."""
        ending: int = self._library.run(self._machine)
        self.interrupts_enabled = ending == WAITING
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return ENDINGS[ending]

    def watch_programs(self, *, wanted: bool) -> bool:
        """See `Engine`."""
        self._library.watch_programs(self._machine, wanted)
        return True

    def watch_page(self, address: int) -> bool:
        """See `Engine`."""
        self._library.watch_page(self._machine, address)
        return True

    def enter_system_call(self) -> bool:
        """See `Engine`."""
        return bool(self._library.enter_system_call(self._machine))

    def stop(self) -> None:
        """See `Engine`."""
        self._library.stop(self._machine)

    def forget_stop(self) -> None:
        """See `Engine`."""
        self._library.forget_stop(self._machine)

    def share_word(self, address: int, word: memoryview) -> None:
        """See `Engine`."""
        pin = ctypes.c_uint32.from_buffer(word)
        self._words.append(pin)
        self._library.share_word(self._machine, address, ctypes.addressof(pin))

    def offer(self, vector: int) -> None:
        """See `Engine`."""
        self._library.offer(self._machine, vector)

    def withdraw(self) -> None:
        """See `Engine`."""
        self._library.withdraw(self._machine)

    # What the library calls for a device. An exception of the device's ends the run; ctypes would print it
    # and go on. There is one for each number of arguments, because gathering them costs as much as the rest.

    def _reader(self, read: Callable[[int, int], int]) -> Callable[[int, int], int]:
        def call(place: int, size: int) -> int:
            try:
                return read(place, size)
            except BaseException as error:  # noqa: BLE001 - `run` raises it
                self._fail(error)
                return 0

        return call

    def _writer(self, write: Callable[[int, int, int], None]) -> Callable[[int, int, int], None]:
        def call(place: int, size: int, value: int) -> None:
            try:
                write(place, size, value)
            except BaseException as error:  # noqa: BLE001 - as above
                self._fail(error)

        return call

    def _timer(self, arm: Callable[[int], None]) -> Callable[[int], None]:
        def call(ticks: int) -> None:
            try:
                arm(ticks)
            except BaseException as error:  # noqa: BLE001 - as above
                self._fail(error)

        return call

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self.stop()


def _detach(library: Library, machine: int, _uc: Uc) -> None:
    library.detach(machine)


class _Bytes:
    """Hands on what the console has printed."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def write(self, port: int, address: int, count: int) -> None:
        """The bytes at an address of ours."""
        self._bus.write_bytes(port, ctypes.string_at(address, count))
