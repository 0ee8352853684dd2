"""The machine's devices: register accesses in, bytes and interrupts out.

None of them reads a clock, opens a file, starts a thread or takes a lock. The machine calls them under its
bus lock, gives them their clocks and outputs as callables, and puts them where `address_map` says.
Whatever a guest writes, no device raises: it ignores what has no meaning, as hardware does.
"""
