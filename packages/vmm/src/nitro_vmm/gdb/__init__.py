"""A stub for GDB: the remote protocol, and what a debugger asks of a processor and of memory.

Nothing here opens a socket or knows an accelerator. `packets` turns bytes into packets and back, `session`
answers them, `registers` and `paging` know x86-64. Who has a machine implements `session.Target`.
"""
