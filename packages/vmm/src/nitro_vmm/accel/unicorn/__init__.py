"""Unicorn, QEMU's processor emulation as a library, and what it leaves to its user.

Nothing outside of this folder imports Unicorn.
"""

# The native part must be loaded before Unicorn is, so it comes first.
from nitro_vmm.accel.unicorn.native import MISSING as NATIVE_PART_MISSING

from nitro_vmm.accel.unicorn.vm import Unicorn  # isort: skip

__all__ = ["NATIVE_PART_MISSING", "Unicorn"]
