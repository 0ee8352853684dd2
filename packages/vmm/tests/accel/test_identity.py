"""The processor that CPUID describes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.accel.unicorn.identity import leaves

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
    assert brand.rstrip(b"\0").isascii()
    assert brand.endswith(b"\0")


@pytest.mark.parametrize(
    ("leaf", "register", "bits", "there"),
    [
        pytest.param(1, 2, [0, 9, 13, 19, 20, 23], True, id="x86-64-v2"),
        pytest.param(0x8000_0001, 2, [0], True, id="x86-64-v2: LAHF"),
        pytest.param(1, 3, [0, 8, 15, 23, 24, 25, 26], True, id="x86-64"),
        pytest.param(0x8000_0001, 3, [11, 20, 29], True, id="SYSCALL NX LM"),
        pytest.param(1, 2, [12, 26, 27, 28, 29], False, id="no FMA XSAVE OSXSAVE AVX F16C"),
        pytest.param(1, 2, [21], False, id="no x2APIC"),
        pytest.param(1, 2, [24], True, id="TSC deadline"),
        pytest.param(7, 1, [3, 8], False, id="no BMI"),
        pytest.param(0x4000_0001, 0, [3, 24], True, id="kvm-clock"),
        pytest.param(0x8000_0007, 3, [8], False, id="no invariant TSC, which Linux would prefer"),
        pytest.param(7, 1, [5, 16], False, id="no AVX2 AVX512"),
    ],
)
def test_features(leaf: int, register: int, bits: list[int], there: bool) -> None:  # noqa: FBT001
    assert [bool(LEAVES[leaf][register] & 1 << bit) for bit in bits] == [there] * len(bits)


@pytest.mark.parametrize(
    ("leaf", "register", "bits", "there"),
    [
        pytest.param(1, 2, [19], True, id="SSE4.1"),
        pytest.param(1, 2, [20, 24], False, id="no SSE4.2, no TSC deadline"),
        pytest.param(0x4000_0001, 0, [3, 24], False, id="no kvm-clock"),
        pytest.param(0x8000_0007, 3, [8], True, id="invariant TSC"),
    ],
)
def test_features_without_the_native_part(leaf: int, register: int, bits: list[int], there: bool) -> None:  # noqa: FBT001
    assert [bool(PLAIN[leaf][register] & 1 << bit) for bit in bits] == [there] * len(bits)


@given(st.integers(1_000_000, (1 << 32) - 1))
def test_the_frequency_is_told(tsc_hz: int) -> None:
    denominator, numerator, crystal_hz, _ = leaves(tsc_hz, native=True)[0x15]

    assert crystal_hz * numerator // denominator == tsc_hz
    assert leaves(tsc_hz, native=True)[0x16][0] == tsc_hz // 1_000_000
    assert all(0 <= word < 1 << 32 for leaf in leaves(tsc_hz, native=True).values() for word in leaf)
