"""The local APIC's registers: where they are, what they keep of what is written, and what is saved of them.

Source: Intel SDM vol. 3A, chapter "Advanced Programmable Interrupt Controller (APIC)". Sections are named by
their titles, because their numbers change between editions.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from nitro_vmm.devices.state import is_whole, require, require_whole, require_whole_tuple


class Register(IntEnum):
    """Offsets in the page (table "Local APIC Register Address Map"), but for the local vector table's."""

    ID = 0x20
    VERSION = 0x30
    TASK_PRIORITY = 0x80
    ARBITRATION_PRIORITY = 0x90
    PROCESSOR_PRIORITY = 0xA0
    END_OF_INTERRUPT = 0xB0
    REMOTE_READ = 0xC0
    LOGICAL_DESTINATION = 0xD0
    DESTINATION_FORMAT = 0xE0
    SPURIOUS_VECTOR = 0xF0
    IN_SERVICE = 0x100
    TRIGGER_MODE = 0x180
    REQUESTED = 0x200
    ERROR_STATUS = 0x280
    COMMAND_LOW = 0x300
    COMMAND_HIGH = 0x310
    INITIAL_COUNT = 0x380
    CURRENT_COUNT = 0x390
    DIVIDE_CONFIGURATION = 0x3E0


# Plain numbers, because an enum's member takes a look-up.
END_OF_INTERRUPT: Final = 0xB0
SETS_BEGIN: Final = 0x100
SETS_END: Final = 0x280
"""Between these lie the three sets of vectors."""
SET_WORDS: Final = 8
"""Registers of 32 bits in each set, 16 bytes apart."""

READ_ONLY: Final = (
    Register.ID,
    Register.VERSION,
    Register.ARBITRATION_PRIORITY,
    Register.PROCESSOR_PRIORITY,
    Register.REMOTE_READ,
    Register.CURRENT_COUNT,
)
"""Writing these does nothing, as with the sets of vectors; writing what does not exist is an error."""

LVT_TIMER: Final = 0x320
LVT_THERMAL: Final = 0x330
LVT_PERFORMANCE: Final = 0x340
LVT_LINT0: Final = 0x350
LVT_LINT1: Final = 0x360
LVT_ERROR: Final = 0x370

LVT_MASKED: Final = 1 << 16
LVT_PERIODIC: Final = 1 << 17
LVT_DEADLINE: Final = 1 << 18
"""The timer waits for a value of the time stamp counter (section "TSC-Deadline Mode")."""
LVT_WRITABLE: Final = {
    LVT_TIMER: 0x7_00FF,
    LVT_THERMAL: 0x1_07FF,
    LVT_PERFORMANCE: 0x1_07FF,
    LVT_LINT0: 0x1_A7FF,
    LVT_LINT1: 0x1_A7FF,
    LVT_ERROR: 0x1_00FF,
}
"""The bits of each local vector table entry that keep what is written (figure "Local Vector Table (LVT)")."""

VERSION: Final = 0x14 | (len(LVT_WRITABLE) - 1) << 16
SOFTWARE_ENABLED: Final = 1 << 8
VECTOR_MIN: Final = 16
"""Lower ones are illegal (section "Valid Interrupt Vectors")."""

ERROR_SEND_ILLEGAL_VECTOR: Final = 1 << 5
ERROR_RECEIVED_ILLEGAL_VECTOR: Final = 1 << 6
ERROR_ILLEGAL_REGISTER: Final = 1 << 7

PERIOD_NS_MIN: Final = 200_000
"""The shortest period of the timer, as in KVM, because a faster one would keep the host busy."""

NS_PER_S: Final = 1_000_000_000

EXPIRES_IN_NS_MAX: Final = 1 << 63

VECTOR_BITS_MAX: Final = (1 << 256) - (1 << VECTOR_MIN)
"""A set of all legal vectors."""
COMMAND_WRITABLE: Final = 0xC_CFFF
DIVIDE_WRITABLE: Final = 0b1011
DESTINATION_WRITABLE: Final = 0xFF00_0000
DESTINATION_FORMAT_FIXED: Final = 0x0FFF_FFFF
"""Bits that read as ones."""


class LocalApicState(NamedTuple):
    """The local APIC as a guest left it. Sets of vectors are numbers of 256 bits, bit N for vector N."""

    requested: int
    """IRR: the vectors that wait for the processor."""
    in_service: int
    """ISR: those that it is serving."""
    level: int
    """TMR: those that came from a level-triggered line last."""
    task_priority: int
    spurious_vector: int
    """The spurious interrupt vector register, with the bit that enables the APIC."""
    logical_destination: int
    destination_format: int
    local_vectors: tuple[int, ...]
    """The local vector table, in the order of `LVT_WRITABLE`."""
    command_low: int
    command_high: int
    errors: int
    """What was noted for ESR since it was written last."""
    errors_shown: int
    """What ESR reads as."""
    divide: int
    """The divide configuration register."""
    initial_count: int
    """What the timer started from, in its own counts."""
    expires_in_ns: int | None
    """How long the timer has to go, nanoseconds: negative when it is overdue, `None` when it does not run."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        for name in ("requested", "in_service", "level"):
            vectors = getattr(self, name)
            good = is_whole(vectors, VECTOR_BITS_MAX) and not vectors & ~VECTOR_BITS_MAX
            require(self, name, good, "a set of vectors from 16 to 255")
        require_whole(self, task_priority=0xFF, spurious_vector=0x3FF, errors=0xFF, errors_shown=0xFF)
        require_whole(self, command_low=COMMAND_WRITABLE, command_high=DESTINATION_WRITABLE)
        require_whole(self, logical_destination=DESTINATION_WRITABLE, destination_format=0xFFFF_FFFF)
        require_whole(self, divide=DIVIDE_WRITABLE, initial_count=0xFFFF_FFFF)
        count = len(LVT_WRITABLE)
        require_whole_tuple(self, "local_vectors", 0xFFFF_FFFF, lengths=range(count, count + 1))
        entries = zip(self.local_vectors, LVT_WRITABLE.values(), strict=True)
        good = all(not entry & ~writable for entry, writable in entries)
        require(self, "local_vectors", good, "free of reserved bits")
        for name, writable in (
            ("command_low", COMMAND_WRITABLE),
            ("command_high", DESTINATION_WRITABLE),
            ("logical_destination", DESTINATION_WRITABLE),
            ("divide", DIVIDE_WRITABLE),
        ):
            require(self, name, not getattr(self, name) & ~writable, f"within {writable:#x}")
        fixed = self.destination_format & DESTINATION_FORMAT_FIXED == DESTINATION_FORMAT_FIXED
        require(self, "destination_format", fixed, f"a number with {DESTINATION_FORMAT_FIXED:#x} set")
        expires = self.expires_in_ns
        good = expires is None or is_whole(expires, EXPIRES_IN_NS_MAX, least=-EXPIRES_IN_NS_MAX)
        require(
            self, "expires_in_ns", good, f"a whole number from -{EXPIRES_IN_NS_MAX} to {EXPIRES_IN_NS_MAX}"
        )
