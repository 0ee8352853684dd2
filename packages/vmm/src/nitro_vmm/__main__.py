"""``python -m nitro_vmm`` is ``vmm``."""

from nitro_vmm.cli import program

program()
