import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.boot import aml


def package_length(encoded: bytes) -> tuple[int, int]:
    """PkgLength and how many bytes it takes (ACPI 6.5 §20.2.4)."""
    extra = encoded[0] >> 6
    if extra == 0:
        return encoded[0], 1
    return encoded[0] & 0xF | int.from_bytes(encoded[1 : 1 + extra], "little") << 4, 1 + extra


@given(st.integers(0, (1 << 64) - 1))
def test_an_integer_is_what_its_prefix_says(value: int) -> None:
    encoded = aml.integer(value)

    if len(encoded) == 1:
        assert value == encoded[0] < 2
    else:
        size = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[encoded[0]]
        assert encoded[1:] == value.to_bytes(size, "little")


def test_an_integer_of_more_than_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(1 << 64)


@pytest.mark.parametrize("size", [0, 1, 57, 58, 59, 0xFF0, 0x1000, 0xF_FFF0, 0x10_0000])
def test_a_length_counts_itself_and_all_behind_it(size: int) -> None:
    encoded = aml.scope("_SB", bytes(size))

    length, taken = package_length(encoded[1:])
    assert length == len(encoded) - 1
    assert encoded[1 + taken :] == b"_SB_" + bytes(size)


@pytest.mark.parametrize("text", ["", "ABCDE"])
def test_a_name_has_one_to_four_characters(text: str) -> None:
    with pytest.raises(ValueError, match="one to four"):
        aml.segment(text)


def test_ids_are_encoded_as_the_specification_shows() -> None:
    assert aml.eisa_id("PNP0501") == b"\x0c\x41\xd0\x05\x01"
    assert aml.eisa_id("PNP0B00") == b"\x0c\x41\xd0\x0b\x00"


def test_a_package_counts_its_elements() -> None:
    assert aml.package(aml.integer(5), aml.integer(0)) == b"\x12\x05\x02\x0a\x05\x00"


def test_resources_end_with_the_end_tag() -> None:
    ports = aml.io_ports(0x3F8, 8)
    assert ports == b"\x47\x01\xf8\x03\xf8\x03\x01\x08"
    assert aml.resource_template(ports) == b"\x11\x0d\x0a\x0a" + ports + b"\x79\x00"


def test_registers_and_interrupts_are_described() -> None:
    assert aml.memory32_fixed(0xD000_0000, 0x1000) == b"\x86\x09\x00\x01" + struct.pack(
        "<II", 0xD000_0000, 0x1000
    )
    assert aml.interrupt(5, level=True) == b"\x89\x06\x00\x01\x01\x05\x00\x00\x00"
    assert aml.interrupt(4, level=False) == b"\x89\x06\x00\x03\x01\x04\x00\x00\x00"
