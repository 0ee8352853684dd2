"""Instruction tests: what the enclave's processor computes, compared with this machine's to the last bit.

A *form* is an instruction with its kinds of operands. Each form runs on many inputs, each of which is a whole
state of the processor (registers, flags, x87, SSE, and some memory); so is its result. One flat program
(``harness.s``) runs the forms on both sides: on `nitro_vmm`'s processor, without any kernel, and on the
machine's own in a process of its own. `tables` makes the forms, `inputs` the inputs, `compare` the verdicts.
"""
