"""The registers by which a guest with ACPI turns the machine off or restarts it.

Source: ACPI 6.5 §4.8.3.7 (sleep control and status registers of hardware-reduced ACPI) and §4.8.3.6 (reset
register). The FADT tells the guest where they are.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from nitro_vmm.address_map import (
    ACPI_RESET,
    ACPI_RESET_VALUE,
    ACPI_SLEEP_CONTROL,
    ACPI_SLEEP_TYPE_S5,
)

SLEEP_CONTROL: Final = 0
RESET: Final = ACPI_RESET - ACPI_SLEEP_CONTROL
SLEEP_ENABLE: Final = 1 << 5


class AcpiPowerState(NamedTuple):
    """Nothing: these registers remember nothing. It is here so that all devices are saved in the same way."""


class AcpiPower:
    """The ports from `ACPI_SLEEP_CONTROL` to `ACPI_RESET`.

    Args:
        power_off: Called when the guest enters S5; other sleeping states do not exist and are ignored.
        reset: Called when the guest writes the reset value.
    """

    def __init__(self, power_off: Callable[[], None], reset: Callable[[], None]) -> None:
        self._power_off = power_off
        self._reset = reset

    def state(self) -> AcpiPowerState:
        """What to save."""
        return AcpiPowerState()

    def restore(self, state: AcpiPowerState) -> None:
        """Go on from a saved state."""

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - the ports are bytes
        """Read 0: nothing that was written can be read back, and the machine never wakes from a sleep."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002 - the ports are bytes
        """Write sleep control or reset. Writing the sleep status has no effect, because it is always 0."""
        if offset == SLEEP_CONTROL:
            if value & SLEEP_ENABLE and value >> 2 & 7 == ACPI_SLEEP_TYPE_S5:
                self._power_off()
        elif offset == RESET and value & 0xFF == ACPI_RESET_VALUE:
            self._reset()
