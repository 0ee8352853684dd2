"""Unicorn, QEMU's processor emulation as a library, and what it leaves to its user.

Nothing outside of this folder imports Unicorn.
"""

from nitro_vmm.accel.unicorn.vm import Unicorn

__all__ = ["Unicorn"]
