"""A program of the guest's, as the machine can act in its name while it stands before its first instruction.

A debugger would do the same: set registers as for a system call, let the kernel run until it returns, and
afterwards leave registers and memory as they were. The program cannot tell, and the kernel knows of no more
than a system call.
"""

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from nitro_vmm.accel import ProgramState, StopsAtPrograms
from nitro_vmm.errors import GuestError, VmmError
from nitro_vmm.machine.paging import ADDRESS, CR0_PAGING, PRESENT, USER, entries_in, translate
from nitro_vsock import GuestMemory, GuestMemoryError

# The general registers that a system call takes (System V ABI, AMD64 supplement, §A.2.1), by their numbers.
RAX: Final = 0
RSP: Final = 4
ARGUMENTS: Final = (7, 6, 2, 10, 8, 9)
"""RDI RSI RDX R10 R8 R9."""

PAGE_BYTES: Final = 4096
SCRATCH_BYTES: Final = 512
RETURNS_MAX: Final = 10_000
"""How often the kernel may return to other programs before a system call is given up."""

# The auxiliary vector on a new program's stack (System V ABI, AMD64 supplement, §3.4.3).
AT_NULL: Final = 0
AT_RANDOM: Final = 25
AT_RANDOM_BYTES: Final = 16
STACK_WORDS_MAX: Final = 1 << 16
"""How far the vector may be from the top of the stack; Linux lets arguments take more, which init has not."""


class MachineOverError(VmmError):
    """The machine has ended while the kernel worked on a system call."""

    code = "M36"


class Program:
    """The program. All is for the processor's thread.

    Args:
        vcpu: Stands before an instruction of the program.
        memory: The guest's.
        go_on: Lets the guest go on until a processor stands at a program, and returns this processor; raises
            `MachineOverError` when the machine has ended.
    """

    def __init__(
        self, vcpu: StopsAtPrograms, memory: GuestMemory, go_on: Callable[[], StopsAtPrograms]
    ) -> None:
        state = vcpu.program
        assert state is not None  # noqa: S101 - the caller has seen it
        self._vcpu = vcpu
        self._memory = memory
        self._go_on = go_on
        self._start: ProgramState = state
        self._scratch = state.general[RSP] & -PAGE_BYTES
        self._kept = self.read(self._scratch, SCRATCH_BYTES)

    def call(self, number: int, *arguments: int | bytes) -> int:
        """Make a system call in the program's name.

        Args:
            number: Which (Linux, arch/x86/entry/syscalls/syscall_64.tbl).
            arguments: Numbers, or bytes, whose address is given then.

        Returns:
            What the kernel returns: negative for an error.

        Raises:
            GuestError: The kernel does not return to the program.
            MachineOverError: The machine has ended.
        """
        registers, place = list(self._start.general), self._scratch
        registers[RAX] = number
        for register, argument in zip(ARGUMENTS, arguments, strict=False):
            if isinstance(argument, bytes):
                self.write(place, argument)
                registers[register] = place
                place += -(-len(argument) // 8) * 8
            else:
                registers[register] = argument
        self._vcpu.set_general(registers)
        if not self._vcpu.enter_system_call():
            raise GuestError("the kernel takes no system calls of 64-bit programs")
        for _ in range(RETURNS_MAX):
            self._vcpu = self._go_on()  # the kernel may have moved the program to another one
            now = self._vcpu.program
            # The low bits of CR3 number an address space, and are the kernel's affair.
            same = now is not None and not (now.page_tables ^ self._start.page_tables) & ADDRESS
            if now is not None and same and now.rip == self._start.rip:
                (result,) = struct.unpack("<q", struct.pack("<Q", now.general[RAX]))
                return int(result)
        raise GuestError(f"the kernel did not come back from system call {number}")

    def leave(self) -> None:
        """Give the program its registers and memory back; what was changed by `write` elsewhere stays."""
        self.write(self._scratch, self._kept)
        self._vcpu.set_general(self._start.general)

    def find_random(self) -> int | None:
        """Where the 16 random bytes are that the kernel gave the program; `None` if it gave none."""
        words = self._words(self._start.general[RSP])
        for _ in range(next(words)):
            next(words)  # the arguments
        next(words)  # the zero behind them
        while next(words):
            pass  # the environment
        for kind in words:
            value = next(words)
            if kind == AT_NULL:
                return None
            if kind == AT_RANDOM:
                return value
        return None

    def read(self, address: int, length: int) -> bytes:
        """Memory as the program sees it.

        Raises:
            GuestError: There is none.
        """
        found = bytearray()
        while len(found) < length:
            at = address + len(found)
            found += self._piece(at, length - len(found))
        return bytes(found)

    def write(self, address: int, data: bytes) -> None:
        """Change the program's memory.

        Raises:
            GuestError: There is none.
        """
        done = 0
        while done < len(data):
            piece = self._piece(address + done, len(data) - done)
            piece[:] = data[done : done + len(piece)]
            done += len(piece)

    def _words(self, address: int) -> "Words":
        return Words(self, address)

    def _piece(self, address: int, length: int) -> memoryview:
        """So many bytes, or less at the end of a page."""
        place = translate(
            address,
            cr0=CR0_PAGING,
            cr3=self._start.page_tables,
            read=entries_in(self._memory),
            wanted=PRESENT | USER,
        )
        if place is not None:
            physical, size = place
            with suppress(GuestMemoryError):
                return self._memory.slice(physical, min(size, length))
        raise GuestError(f"the program has no memory at {address:#x}")


class Words:
    """The 64-bit words of a program's stack, upwards.

    Args:
        program: Whose.
        address: Of the first one.

    Raises:
        GuestError: On `next`: there are too many, or no memory.
    """

    def __init__(self, program: Program, address: int) -> None:
        self._program = program
        self._address = address
        self._end = address + 8 * STACK_WORDS_MAX

    def __iter__(self) -> "Words":
        return self

    def __next__(self) -> int:
        if self._address >= self._end:
            raise GuestError("the program's stack has no end")
        (word,) = struct.unpack("<Q", self._program.read(self._address, 8))
        self._address += 8
        return int(word)
