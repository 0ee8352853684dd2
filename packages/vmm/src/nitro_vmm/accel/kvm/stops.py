"""Where a guest is stopped that is to be saved, or goes on from a saved machine: at programs, and at a page.

**Programs.** KVM tells nobody that a guest has come to a program. Linux comes to one in two places of its
code for system calls and interrupts (arch/x86/entry/entry_64.S): by SYSRET, and by SWAPGS and IRET where
SYSRET does not do. While somebody watches, an OUT to a port that no device has stands in the place of SYSRET
and of this SWAPGS. That is an exit on every kind of KVM, while breakpoints are not on some. What the
instructions would have done is done from here (`programs`), so they need not be put back for a moment in
which another processor would miss the OUT.

The two are found from where the processor goes with a system call (LSTAR): the first SYSRET, and a SWAPGS
behind that from which a jump leads to an IRET. They are not looked for before the kernel's timer runs,
because a kernel changes its own code for the processor before that.

**The page.** It is taken out of the guest's memory until it is touched. Accesses to it are exits then, which
are carried out on what is there. Linux looks into its ramdisk early, for microcode and tables: what happens
before its timer runs does not count.
"""

import re
import struct
import threading
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from nitro_vmm.accel import Ram
from nitro_vmm.accel.kvm.ioctl import Request, VcpuFile, VmFile
from nitro_vmm.accel.kvm.programs import MSR_LSTAR
from nitro_vsock import GuestMemory, GuestMemoryError

if TYPE_CHECKING:
    import mmap

PORT: Final = 0xF6
"""Where no device of a PC is. Programs cannot reach ports."""
OUT: Final = bytes((0xE6, PORT))
"""OUT with this port in the instruction (Intel SDM vol. 2, "OUT")."""
SYSRET: Final = bytes.fromhex("480f07")
SWAPGS: Final = bytes.fromhex("0f01f8")
IRET: Final = re.compile(rb"(?:\xf6\x44\x24\x20\x04\x75.)?\x48\xcf", re.DOTALL)
"""It may follow ``testb $4,32(%rsp)`` and a jump, for a segment that needs a detour."""
JUMPS: Final = ((b"\xe9", 4), (b"\x0f\x85", 4), (b"\xeb", 1), (b"\x75", 1))
"""JMP and JNE, and the bytes of their distance."""
JUMP_WITHIN: Final = 20
"""So many bytes behind SWAPGS. Linux clears the processor's buffers and looks at the frame in between."""
SYSRET_WITHIN: Final = 0x400
CODE_BYTES: Final = 0x4000
"""How far from LSTAR they are looked for. Linux 6.12 has them 0x200 and 0x1900 bytes behind it."""

PAGE_BYTES: Final = 4096
LAPIC_TIMER: Final = struct.Struct("<I")
LAPIC_TIMER_PLACE: Final = 0x320
LAPIC_MASKED: Final = 1 << 16
"""The local vector table's entry of the timer, and that it is off (Intel SDM vol. 3A, "Local Vector
Table")."""


class Return(Enum):
    """How the kernel returns, and the instruction that is replaced."""

    SYSTEM_CALL = SYSRET
    INTERRUPT = SWAPGS


class _Place(NamedTuple):
    kind: Return
    physical: int


class Stops:
    """The stops of one machine; for the threads of all its processors.

    Args:
        vm: The kernel's side of the machine.
        ram: Its memory, which is in slots of the same numbers.
    """

    def __init__(self, vm: VmFile, ram: Ram) -> None:
        self._vm = vm
        self._ram = ram
        self.memory = GuestMemory((place.address, memoryview(memory)) for place, memory in ram)
        """The guest's memory."""
        self.kernel_is_up = False
        """Whether the kernel's timer has run already, because the machine was saved."""
        self._lock = threading.Lock()
        self._wanted = False
        self._planted = False
        self._places: dict[int, _Place] = {}
        self._page = range(0)
        self._page_memory: tuple[mmap.mmap, int] | None = None

    # Programs.

    def want_programs(self, *, wanted: bool) -> None:
        """Stop, or stop no more, where the kernel returns to a program, from each processor's next run on."""
        with self._lock:
            self._wanted = wanted
            if not wanted:
                self._remove()

    def prepare(self, file: VcpuFile) -> bool:
        """See that a processor that is about to run stops where it has to.

        Returns:
            Whether it does; false when the kernel's instructions are not found.
        """
        if not self._lacking():
            return True
        with self._lock:
            if not self._lacking():
                return True
            if not self._places and not self.kernel_is_up and not timer_runs(file):
                return True
            if not self._entry_of(file):
                return True  # another processor, which has not been started yet
            if not self._finds_returns(file):
                return False
            for place in self._places.values():
                self.memory.slice(place.physical, len(OUT))[:] = OUT
            self._planted = True
            return True

    def finds_returns(self, file: VcpuFile) -> bool:
        """Whether the kernel's instructions are found, so that its programs can be watched later."""
        with self._lock:
            return self._finds_returns(file)

    def remove(self) -> None:
        """Put the kernel's instructions back, until a processor runs again."""
        with self._lock:
            self._remove()

    def return_at(self, rip: int) -> Return | None:
        """What stood where an OUT was executed; `None` if that is one of the guest's."""
        # Old kernels have gone on behind the OUT already.
        place = self._places.get(rip, self._places.get(rip - len(OUT)))
        return None if place is None else place.kind

    def _lacking(self) -> bool:
        return self._wanted and not self._planted

    def _remove(self) -> None:
        if self._planted:
            for kind, physical in self._places.values():
                self.memory.slice(physical, len(OUT))[:] = kind.value[: len(OUT)]
        self._planted = False

    def _finds_returns(self, file: VcpuFile) -> bool:
        if not self._places:
            self._places = self._find(file)
        return bool(self._places)

    def _entry_of(self, file: VcpuFile) -> int:
        """Where a processor goes with a system call; 0 if its kernel has not said yet."""
        ((_, entry),) = file.msrs((MSR_LSTAR,))
        return entry

    def _find(self, file: VcpuFile) -> dict[int, _Place]:
        start = self._entry_of(file)
        found = {}
        for kind, offset in find_returns(self._read(file, start, CODE_BYTES)).items():
            physical = file.translate(start + offset)
            if physical is None or (physical + len(OUT) - 1) // PAGE_BYTES != physical // PAGE_BYTES:
                return {}
            found[start + offset] = _Place(kind, physical)
        return found

    def _read(self, file: VcpuFile, address: int, length: int) -> bytes:
        """Virtual memory, as far as there is any."""
        found = bytearray()
        while len(found) < length:
            at = address + len(found)
            physical = file.translate(at)
            if physical is None:
                break
            try:
                found += self.memory.slice(physical, PAGE_BYTES - at % PAGE_BYTES)
            except GuestMemoryError:
                break
        return bytes(found[:length])

    # The page.

    def watch_page(self, address: int) -> bool:
        """Stop when a page is touched, once; before the first run. False where there is no such page."""
        for slot, (place, memory) in enumerate(self._ram):
            start = address - place.address
            if 0 <= start <= len(memory) - PAGE_BYTES and not start % PAGE_BYTES:
                end = start + PAGE_BYTES
                # The kernel takes neither another size of a piece nor a piece of no size.
                self._vm.set_memory(slot, place.address, memory, length=0)
                if start:
                    self._vm.set_memory(slot, place.address, memory, length=start)
                if behind := len(memory) - end:
                    more = len(self._ram)
                    self._vm.set_memory(more, place.address + end, memory, start=end, length=behind)
                self._page = range(address, address + PAGE_BYTES)
                self._page_memory = memory, start
                return True
        return False

    def page_at(self, address: int, size: int) -> memoryview | None:
        """The memory where an access of the watched page goes; `None` for one that goes to the bus."""
        if address not in self._page:
            return None
        return self.memory.slice(address, min(size, self._page.stop - address))

    def touched(self, file: VcpuFile) -> bool:
        """Whether this access of the watched page is the one to stop at; the page is RAM again then."""
        if not timer_runs(file):
            return False
        with self._lock:
            if self._page_memory is None:
                return False
            memory, start = self._page_memory
            self._page_memory = None
            slot = len(self._ram) + 1
            self._vm.set_memory(slot, self._page.start, memory, start=start, length=PAGE_BYTES)
            return True


def find_returns(code: bytes) -> dict[Return, int]:
    """Where a kernel returns to programs.

    Args:
        code: Its code from LSTAR on.

    Returns:
        Where both ways are in the code; empty if one is not found.
    """
    system_call = code.find(SYSRET, 0, SYSRET_WITHIN)
    if system_call == -1:
        return {}
    place = system_call
    while (place := code.find(SWAPGS, place + 1)) != -1:
        if _jumps_to_iret(code, place + len(SWAPGS)):
            return {Return.SYSTEM_CALL: system_call, Return.INTERRUPT: place}
    return {}


def _jumps_to_iret(code: bytes, start: int) -> bool:
    for at in range(start, start + JUMP_WITHIN):
        for jump, size in JUMPS:
            if code.startswith(jump, at):
                end = at + len(jump) + size
                target = end + int.from_bytes(code[end - size : end], "little", signed=True)
                if 0 <= target < len(code) and IRET.match(code, target):
                    return True
    return False


def timer_runs(file: VcpuFile) -> bool:
    """Whether a processor's kernel has switched the timer of its local APIC on."""
    (entry,) = LAPIC_TIMER.unpack_from(file.get(Request.GET_LAPIC), LAPIC_TIMER_PLACE)
    return not entry & LAPIC_MASKED
