"""What the two ways to run a guest on Unicorn have in common: with the native part, and without it."""

from enum import Enum, auto
from typing import Protocol


class Bus(Protocol):
    """Where accesses go that are not to RAM."""

    def read_port(self, port: int, size: int) -> int:
        """IN."""

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT."""

    def read_memory(self, address: int, size: int) -> int:
        """A load."""

    def write_memory(self, address: int, size: int, value: int) -> None:
        """A store."""

    def write_bytes(self, port: int, data: bytes) -> None:
        """OUT of one byte after the other."""

    def arm_timer(self, ticks: int) -> None:
        """The time stamp counter's deadline: when it comes, in ticks from now; -1 for none."""


class Stopped(Enum):
    """Why a processor stopped."""

    HALTED = auto()
    """HLT: waits for an interrupt."""
    ASKED = auto()
    """Somebody called `stop`."""
    TRIPLE_FAULT = auto()
    """An exception could not be delivered, nor the double fault that follows."""
    PROGRAM = auto()
    """A program is about to run, and `watch_programs` was asked for."""
    PAGE = auto()
    """The page of `watch_page` was touched."""
    CRASHED = auto()
    """The guest ran where there is no code, or did what QEMU cannot emulate; `crash` says more."""


class Engine(Protocol):
    """Runs a guest; `Cpu` documents the methods."""

    @property
    def crash(self) -> str:
        """What `Stopped.CRASHED` means, for people."""

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF, when the last run ended with `Stopped.HALTED`."""

    @property
    def is_at_program(self) -> bool:
        """Whether the next instruction is one of a 64-bit program's."""

    def run(self) -> Stopped:
        """Run until the guest stops."""

    def watch_programs(self, *, wanted: bool) -> bool:
        """Stop where a program is about to run; false where this engine cannot."""

    def watch_page(self, address: int) -> bool:
        """Stop when a page is touched, but for early looks; false where this engine cannot."""

    def enter_system_call(self) -> bool:
        """Go on as if the program had executed SYSCALL before its next instruction; false if it cannot."""

    def stop(self) -> None:
        """End `run`."""

    def forget_stop(self) -> None:
        """Let `run` run again."""

    def share_word(self, address: int, word: memoryview) -> None:
        """Have four bytes of a device read from ``word``; does nothing where that is no cheaper."""

    def offer(self, vector: int) -> None:
        """Offer an interrupt."""

    def withdraw(self) -> None:
        """Take an offer back."""
