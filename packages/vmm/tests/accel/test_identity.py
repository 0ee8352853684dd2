"""The processor that CPUID describes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.accel.unicorn.identity import PHYSICAL_ADDRESS_END, leaves

TSC_HZ = 2_199_999_000
LEAVES = leaves(TSC_HZ, native=True)
PLAIN = leaves(TSC_HZ, native=False)


def test_leaves_are_those_that_the_highest_ones_promise() -> None:
    assert max(leaf for leaf in LEAVES if leaf < 0x4000_0000) == LEAVES[0][0]
    assert max(LEAVES) == LEAVES[0x8000_0000][0]


def test_vendor_and_hypervisor() -> None:
    _, ebx, ecx, edx = LEAVES[0]
    assert struct.pack("<III", ebx, edx, ecx) == b"GenuineIntel"
    assert struct.pack("<III", *LEAVES[0x4000_0000][1:]) == b"KVMKVMKVM\0\0\0"


def test_the_brand_is_text_that_ends() -> None:
    words = [word for leaf in (0x8000_0002, 0x8000_0003, 0x8000_0004) for word in LEAVES[leaf]]
    brand = struct.pack("<12I", *words)
    assert brand.rstrip(b"\0") == b"Nitro-like enclave on an emulated CPU", "as /proc/cpuinfo has it"
    assert brand.endswith(b"\0")


# Names of the features' bits (Intel SDM vol. 2A, "CPUID"; Linux's Documentation/virt/kvm/x86/cpuid.rst), as
# far as programs and kernels ask for them.
EAX, EBX, ECX, EDX = range(4)
NAMES = {
    (1, ECX): {
        0: "SSE3",
        1: "PCLMULQDQ",
        9: "SSSE3",
        12: "FMA",
        13: "CX16",
        19: "SSE4.1",
        20: "SSE4.2",
        21: "x2APIC",
        22: "MOVBE",
        23: "POPCNT",
        24: "TSC deadline",
        25: "AES",
        26: "XSAVE",
        27: "OSXSAVE",
        28: "AVX",
        29: "F16C",
        30: "RDRAND",
        31: "hypervisor",
    },
    (1, EDX): {
        0: "FPU",
        1: "VME",
        2: "DE",
        3: "PSE",
        4: "TSC",
        5: "MSR",
        6: "PAE",
        7: "MCE",
        8: "CX8",
        9: "APIC",
        11: "SEP",
        12: "MTRR",
        13: "PGE",
        14: "MCA",
        15: "CMOV",
        16: "PAT",
        17: "PSE36",
        18: "PSN",
        19: "CLFLUSH",
        23: "MMX",
        24: "FXSR",
        25: "SSE",
        26: "SSE2",
        28: "HTT",
    },
    (6, EAX): {2: "ARAT"},
    (7, EBX): {
        0: "FSGSBASE",
        1: "TSC_ADJUST",
        3: "BMI1",
        5: "AVX2",
        7: "SMEP",
        8: "BMI2",
        9: "ERMS",
        16: "AVX512F",
        18: "RDSEED",
        19: "ADX",
        20: "SMAP",
    },
    (0x4000_0001, EAX): {0: "kvm-clock", 1: "no I/O delay", 3: "kvm-clock 2", 24: "stable kvm-clock"},
    (0x8000_0001, ECX): {0: "LAHF", 5: "LZCNT"},
    (0x8000_0001, EDX): {11: "SYSCALL", 20: "NX", 26: "1 GiB pages", 27: "RDTSCP", 29: "LM"},
    (0x8000_0007, EDX): {8: "invariant TSC"},
}
X86_64_V2 = {
    *("FPU", "DE", "PSE", "TSC", "MSR", "PAE", "CX8", "CMOV", "MMX", "FXSR", "SSE", "SSE2", "SYSCALL", "LM"),
    *("CX16", "LAHF", "POPCNT", "SSE3", "SSE4.1", "SSE4.2", "SSSE3"),
}
FOR_PROGRAMS = {"PCLMULQDQ", "MOVBE", "AES", "RDRAND", "FSGSBASE", "LZCNT", "CLFLUSH", "RDTSCP"}
FOR_KERNELS = {
    *("MCE", "APIC", "SEP", "MTRR", "PGE", "MCA", "PAT", "PSE36", "hypervisor", "ARAT", "TSC_ADJUST", "SMEP"),
    "NX",
}
WITH_THE_NATIVE_PART = {
    *("TSC deadline", "kvm-clock", "kvm-clock 2", "no I/O delay", "stable kvm-clock", "ERMS"),
}


def features(leaves: dict[int, tuple[int, ...]]) -> set[str]:
    """The names of all bits that are set in registers of features."""
    return {
        names.get(bit, f"bit {bit} of leaf {leaf:#x}")
        for (leaf, register), names in NAMES.items()
        for bit in range(32)
        if leaves[leaf][register] & 1 << bit
    }


def test_features() -> None:
    assert features(LEAVES) == X86_64_V2 | FOR_PROGRAMS | FOR_KERNELS | WITH_THE_NATIVE_PART


def test_features_without_the_native_part() -> None:
    assert features(PLAIN) == (X86_64_V2 - {"SSE4.2"}) | FOR_PROGRAMS | FOR_KERNELS | {"invariant TSC"}


def test_an_atom_of_the_first_generation() -> None:
    signature, ebx, _, _ = LEAVES[1]

    family, model, stepping = (
        signature >> 8 & 0xF,
        signature >> 12 & 0xF0 | signature >> 4 & 0xF,
        signature & 0xF,
    )
    assert (family, model, stepping) == (6, 0x1C, 10)
    assert (signature & ~0xF_0FFF, signature >> 12 & 3) == (0, 0), "an original processor of no other family"
    assert ebx >> 8 & 0xFF == 64 // 8, "what CLFLUSH takes is told in 8 bytes"
    assert ebx >> 16 & 0xFF == 1, "logical processors"


def test_40_bits_of_physical_addresses_and_48_of_linear_ones() -> None:
    eax, *others = LEAVES[0x8000_0008]

    assert (eax & 0xFF, eax >> 8) == (40, 48)
    assert others == [0, 0, 0]
    assert PHYSICAL_ADDRESS_END == 1 << 40


@pytest.mark.parametrize("leaves", [LEAVES, PLAIN])
def test_what_has_no_meaning_is_zero(leaves: dict[int, tuple[int, ...]]) -> None:
    meaning = {*NAMES, (1, EAX), (1, EBX), (0x15, EAX), (0x15, EBX), (0x15, ECX), (0x16, EAX), (0x16, EBX)}
    meaning |= {(0x8000_0000, EAX), (0x4000_0000, EAX), (0x8000_0008, EAX)}
    texts = {0, 0x4000_0000, 0x8000_0002, 0x8000_0003, 0x8000_0004}

    others = {
        (leaf, register): value
        for leaf, registers in leaves.items()
        for register, value in enumerate(registers)
        if leaf not in texts and (leaf, register) not in meaning
    }

    assert set(others.values()) == {0}
    assert leaves[0x4000_0000][EAX] == 0x4000_0001
    assert leaves[0x16][EBX] == leaves[0x16][EAX]


@given(st.integers(1_000_000, (1 << 32) - 1))
def test_the_frequency_is_told(tsc_hz: int) -> None:
    denominator, numerator, crystal_hz, _ = leaves(tsc_hz, native=True)[0x15]

    assert crystal_hz * numerator // denominator == tsc_hz
    assert leaves(tsc_hz, native=True)[0x16][0] == tsc_hz // 1_000_000
    assert all(0 <= word < 1 << 32 for leaf in leaves(tsc_hz, native=True).values() for word in leaf)
