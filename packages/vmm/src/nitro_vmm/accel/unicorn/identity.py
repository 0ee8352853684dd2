"""Which processor the guest finds, by CPUID (Intel SDM vol. 2A, "CPUID").

The identity is chosen for a short boot, and is no lie about what programs can use:

* Intel, so that leaf 0x15 gives Linux the frequencies of the time stamp counter and of the local APIC's
  timer, and nothing is calibrated against a timer chip that is not there; leaf 0x16 for the processor's own.
* An Atom of the first generation (family 6, model 0x1C): it executes in order, so Linux knows it to be
  immune to speculation and leaves its mitigations out. An emulator does not speculate.
* A KVM signature: Linux then skips the test of the IO-APIC's timer pin, which has none. With the native part
  there is kvm-clock, as on Nitro: the guest's time is the host's from the first moment on. The time stamp
  counter is not called invariant then, because Linux would prefer it as its clock.
* Without the native part, an invariant time stamp counter: Linux then trusts it and starts no watchdog.
* The timer by the time stamp counter's deadline with the native part, because a kernel with kvm-clock does
  not take the timer's frequency from leaf 0x15, and measures it for a tenth of a second.
* A timer of the local APIC that runs in every sleep (ARAT): else Linux, which has no other timer to wake it,
  keeps a periodic tick, and a guest that waits keeps the host busy.
* No x2APIC, XSAVE or AVX: Unicorn does not have them. No BMI1 or BMI2: it has them wrong, and so it has the
  string compares of SSE4.2 without the native part. They cannot be hidden alone, so SSE4.2 goes.
* Fast strings (ERMS) with the native part only: without it a byte at a time is the slowest way to copy.
"""

from typing import Final

Leaf = tuple[int, ...]

VENDOR: Final = b"GenuineIntel"
HYPERVISOR: Final = b"KVMKVMKVM\0\0\0"
BRAND: Final = b"Nitro-like enclave on an emulated CPU".ljust(48, b"\0")

FAMILY_6_MODEL_1C_STEPPING_A: Final = 0x0001_06CA
CLFLUSH_64_BYTES: Final = 8 << 8
ONE_LOGICAL_PROCESSOR: Final = 1 << 16

# Leaf 1, ECX: SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES RDRAND, and "a hypervisor is here".
FEATURES_ECX: Final = sum(1 << bit for bit in (0, 1, 9, 13, 19, 20, 22, 23, 25, 30, 31))
# Leaf 1, EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR SSE SSE2.
FEATURES_EDX: Final = sum(
    1 << bit for bit in (0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26)
)
# Leaf 7, EBX: FSGSBASE TSC_ADJUST SMEP.
STRUCTURED_EBX: Final = sum(1 << bit for bit in (0, 1, 7))
# Leaf 0x80000001: LAHF LZCNT; SYSCALL NX RDTSCP LM.
EXTENDED_ECX: Final = sum(1 << bit for bit in (0, 5))
EXTENDED_EDX: Final = sum(1 << bit for bit in (11, 20, 27, 29))
ALWAYS_RUNNING_APIC_TIMER: Final = 1 << 2
INVARIANT_TSC: Final = 1 << 8
ERMS: Final = 1 << 9
SSE42: Final = 1 << 20
TSC_DEADLINE: Final = 1 << 24
# Leaf 0x40000001, EAX: kvm-clock by old and new registers, no delays between port accesses, a stable clock.
KVM_FEATURES: Final = sum(1 << bit for bit in (0, 1, 3, 24))
ADDRESS_BITS: Final = 48 << 8 | 40
"""Linear and physical."""

PHYSICAL_ADDRESS_END: Final = 1 << 40


def leaves(tsc_hz: int, *, native: bool) -> dict[int, Leaf]:
    """EAX, EBX, ECX and EDX by leaf; all others are zero, and so are all subleaves but 0.

    Args:
        tsc_hz: What the time stamp counter and the local APIC's timer count at; below 2**32.
        native: Whether the native part is there, and with it what Unicorn alone does not have.
    """
    features_ecx = FEATURES_ECX | TSC_DEADLINE if native else FEATURES_ECX & ~SSE42
    structured_ebx = STRUCTURED_EBX | ERMS if native else STRUCTURED_EBX
    power = 0 if native else INVARIANT_TSC
    kvm_features = KVM_FEATURES if native else 0
    mhz = tsc_hz // 1_000_000
    brand = {0x8000_0002 + index: _words(BRAND[16 * index : 16 * index + 16]) for index in range(3)}
    signature = FAMILY_6_MODEL_1C_STEPPING_A
    return {
        0: (0x16, *_vendor(VENDOR)),
        1: (signature, CLFLUSH_64_BYTES | ONE_LOGICAL_PROCESSOR, features_ecx, FEATURES_EDX),
        6: (ALWAYS_RUNNING_APIC_TIMER, 0, 0, 0),
        7: (0, structured_ebx, 0, 0),
        0x15: (1, 1, tsc_hz, 0),
        0x16: (mhz, mhz, 0, 0),
        0x4000_0000: (0x4000_0001, *_words(HYPERVISOR)),
        0x4000_0001: (kvm_features, 0, 0, 0),
        0x8000_0000: (0x8000_0008, 0, 0, 0),
        0x8000_0001: (0, 0, EXTENDED_ECX, EXTENDED_EDX),
        **brand,
        0x8000_0007: (0, 0, 0, power),
        0x8000_0008: (ADDRESS_BITS, 0, 0, 0),
    }


def _words(text: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(text[at : at + 4], "little") for at in range(0, len(text), 4))


def _vendor(name: bytes) -> tuple[int, int, int]:
    ebx, edx, ecx = _words(name)
    return ebx, ecx, edx
