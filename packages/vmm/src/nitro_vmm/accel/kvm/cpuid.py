"""What CPUID answers in a guest on KVM: the host's processor, less what a guest must not use.

Sources: Intel SDM vol. 2A, "CPUID", and AMD APM vol. 3, appendix E. KVM says what it can offer. Nested
virtualization and the performance counters are taken out of that, and the topology is the guest's own: each
of its processors is a core of one package.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from nitro_vmm.accel.kvm.structures import CpuidEntry

EXTENDED: Final = 0x8000_0001
NAMES: Final = (0x8000_0002, 0x8000_0003, 0x8000_0004)
KVM_FEATURES: Final = 0x4000_0001

ECX_VMX: Final = 1 << 5
ECX_TSC_DEADLINE: Final = 1 << 24
ECX_HYPERVISOR: Final = 1 << 31
EDX_MULTI_THREADING: Final = 1 << 28
EXTENDED_ECX_SVM: Final = 1 << 2
KVM_EAX_CLOCKS: Final = 1 << 0 | 1 << 3
"""kvm-clock by its old and by its new registers (Documentation/virt/kvm/x86/cpuid.rst)."""


def offers_kvm_clock(supported: Iterable[CpuidEntry]) -> bool:
    """Whether a guest finds kvm-clock in these answers."""
    return any(entry.function == KVM_FEATURES and entry.eax & KVM_EAX_CLOCKS for entry in supported)


def name(answers: Iterable[CpuidEntry]) -> str:
    """The processor's name in these answers, for people."""
    words = {
        entry.function: b"".join(
            value.to_bytes(4, "little") for value in (entry.eax, entry.ebx, entry.ecx, entry.edx)
        )
        for entry in answers
    }
    text = b"".join(words.get(leaf, b"") for leaf in NAMES)
    return " ".join(text.decode("ascii", errors="replace").replace("\0", " ").split()) or "a processor"


def for_guest(
    supported: Iterable[CpuidEntry], *, apic_id: int, processors: int, tsc_deadline: bool
) -> Iterator[CpuidEntry]:
    """The answers for one of a guest's processors.

    Args:
        supported: What KVM can offer.
        apic_id: The processor's number, from 0.
        processors: How many there are.
        tsc_deadline: Whether the kernel's local APIC has a timer that compares with the time stamp counter.
    """
    for entry in supported:
        match entry.function:
            case 1:
                yield entry._replace(
                    ebx=entry.ebx & 0xFFFF | processors << 16 | apic_id << 24,
                    ecx=entry.ecx & ~ECX_VMX | ECX_HYPERVISOR | (ECX_TSC_DEADLINE if tsc_deadline else 0),
                    edx=entry.edx | EDX_MULTI_THREADING
                    if processors > 1
                    else entry.edx & ~EDX_MULTI_THREADING,
                )
            case 4 | 0x8000_001D if entry.eax & 0x1F:
                # How many cores there are in the package; and no cache is shared by threads of one core.
                shared = entry.eax >> 5 & 7 == 3
                users = processors - 1 if shared else 0
                yield entry._replace(eax=entry.eax & 0x3FFF | users << 14 | processors - 1 << 26)
            case 6 | 0xA | 0x8000_000A | 0x8000_001F:
                # Power management, performance counters, SVM, and memory encryption.
                yield entry._replace(eax=0, ebx=0, ecx=0, edx=0)
            case 0xB | 0x1F:
                # Without levels; Linux then takes the topology from leaves 1 and 4.
                yield entry._replace(eax=0, ebx=0, ecx=entry.ecx & 0xFF, edx=apic_id)
            case 0x8000_001E:
                # AMD's own numbers: one thread a core, one node a package.
                yield entry._replace(eax=apic_id, ebx=apic_id, ecx=0, edx=0)
            case 0x8000_0001:
                yield entry._replace(ecx=entry.ecx & ~EXTENDED_ECX_SVM)
            case 0x8000_0008:
                # Beside the sizes of addresses: how many cores there are, and no bits of their numbers.
                yield entry._replace(ecx=entry.ecx & ~0xFFFF | processors - 1)
            case _:
                yield entry
