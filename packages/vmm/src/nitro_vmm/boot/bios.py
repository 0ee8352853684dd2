"""Code at the BIOS's entry point that resets the machine, the only use that a running kernel has for a BIOS.

Where ACPI is hardware-reduced and there is no EFI, Linux reboots by a jump to F000:FFF0 in real mode (so does
``reboot=bios``), and leaves the ACPI reset register for ``reboot=acpi``.
"""

import struct

from nitro_vmm.address_map import ACPI_RESET, ACPI_RESET_VALUE

MOV_DX, MOV_AL, OUT_DX_AL, HLT, JMP_SHORT = 0xBA, 0xB0, 0xEE, 0xF4, 0xEB

RESET_CODE = struct.pack(
    "<BHBBBBBb", MOV_DX, ACPI_RESET, MOV_AL, ACPI_RESET_VALUE, OUT_DX_AL, HLT, JMP_SHORT, -3
)
"""Real-mode code, to be written at `BIOS_RESET`. It writes the ACPI reset register, then halts."""
