"""Saved machines: what a file of one holds, how it is written and read, and which machine it fits.

`codec` and `layout` are bytes in, values out. `store` writes and maps files. What a machine needs to go on in
another life (`renewal`) is told by the kernel of the guest, in the name of its first program.
"""
