"""The boot loader: everything between an image's bytes and the kernel's first instruction, without I/O."""

from nitro_vmm.accel.state import EntryState
from nitro_vmm.boot.loader import load
from nitro_vmm.boot.ram import Ram

__all__ = ["EntryState", "Ram", "load"]
