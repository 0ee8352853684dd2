"""The virtual machine's generation: a number that changes when a guest is let live once more.

A guest cannot notice that it was saved. Where it has ACPI, this tells it: 16 bytes of its memory change, and
an interrupt says so. Linux then renews its random number generator and tells its programs. That is some time
after the guest goes on, so what must not happen twice before is seen to by `nitro_vmm.snapshot.renewal`.

Source: Microsoft, "Virtual Machine Generation ID"; ACPI 6.5 §5.6.9 (interrupt-signaled events). The tables
(`nitro_vmm.boot.acpi`) say where the number is.
"""

from collections.abc import Callable
from typing import Final

from nitro_vmm.address_map import GENERATION_ID
from nitro_vsock import GuestMemory

GENERATION_ID_BYTES: Final = 16


class GenerationId:
    """The number.

    Args:
        memory: The guest's, where the number is.
        line: The interrupt line of ACPI's events, which takes edges.
    """

    def __init__(self, memory: GuestMemory, line: Callable[[bool], None]) -> None:
        self._memory = memory
        self._line = line

    def change(self, number: bytes) -> None:
        """Let the guest be another one than it was; under the bus lock.

        Args:
            number: `GENERATION_ID_BYTES` of random.
        """
        self._memory.slice(GENERATION_ID, GENERATION_ID_BYTES)[:] = number
        self._line(True)
        self._line(False)
