"""Only S5 with the enable bit turns the machine off, and only the reset value resets it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.address_map import ACPI_RESET_VALUE, ACPI_SLEEP_TYPE_S5
from nitro_vmm.devices.acpi_power import RESET, SLEEP_CONTROL, SLEEP_ENABLE, AcpiPower

S5 = ACPI_SLEEP_TYPE_S5 << 2


@pytest.mark.parametrize(
    ("offset", "value", "expected"),
    [
        (SLEEP_CONTROL, S5 | SLEEP_ENABLE, ["off"]),
        (SLEEP_CONTROL, S5, []),
        (SLEEP_CONTROL, 3 << 2 | SLEEP_ENABLE, []),
        (SLEEP_CONTROL + 1, S5 | SLEEP_ENABLE, []),
        (RESET, ACPI_RESET_VALUE, ["reset"]),
        (RESET, 0, []),
    ],
)
def test_a_write_does_what_acpi_says(offset: int, value: int, expected: list[str]) -> None:
    events: list[str] = []
    registers = AcpiPower(lambda: events.append("off"), lambda: events.append("reset"))

    registers.write(offset, 1, value)

    assert events == expected


@given(st.integers(0, 15), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))
def test_no_access_raises(offset: int, size: int, value: int) -> None:
    registers = AcpiPower(lambda: None, lambda: None)

    registers.write(offset, size, value)

    assert registers.read(offset, size) == 0
