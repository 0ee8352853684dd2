"""The registers that GDB is shown, and the description by which it knows them.

Source: GDB's manual, "Target Description Format" and "i386 Features". The order below is the order of the
numbers in ``p``, ``P`` and of the values in ``g``; GDB wants the x87 registers, too, in its core feature.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple


class Register(NamedTuple):
    """One register."""

    name: str
    """GDB's name for it."""
    bits: int
    """Its size."""
    kind: str = "int"
    """GDB's type."""
    writable: bool = True
    """Whether GDB may change it."""

    @property
    def size(self) -> int:
        """In bytes."""
        return self.bits // 8


GENERAL: Final = (
    *(Register(name, 64, "int64") for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi")),
    *(Register(name, 64, "data_ptr") for name in ("rbp", "rsp")),
    *(Register(f"r{number}", 64, "int64") for number in range(8, 16)),
    Register("rip", 64, "code_ptr"),
    Register("eflags", 32, "flags"),
    *(Register(name, 32, "int32", writable=False) for name in ("cs", "ss", "ds", "es", "fs", "gs")),
)
X87: Final = (
    *(Register(f"st{number}", 80, "i387_ext", writable=False) for number in range(8)),
    *(
        Register(name, 32, "int", writable=False)
        for name in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
    ),
)
SSE: Final = (
    *(Register(f"xmm{number}", 128, "vec128", writable=False) for number in range(16)),
    Register("mxcsr", 32, "int", writable=False),
)
SEGMENTS: Final = (Register("fs_base", 64, "int"), Register("gs_base", 64, "int"))
SYSTEM: Final = tuple(
    Register(name, 64, "int64", writable=False)
    for name in ("kernel_gs_base", "cr0", "cr2", "cr3", "cr4", "efer")
)
FEATURES: Final = (
    ("org.gnu.gdb.i386.core", GENERAL + X87),
    ("org.gnu.gdb.i386.sse", SSE),
    ("org.gnu.gdb.i386.segments", SEGMENTS),
    ("nitro.vmm.system", SYSTEM),
)
REGISTERS: Final = tuple(register for _, registers in FEATURES for register in registers)
"""All, in the order of their numbers."""

FLAGS: Final = {
    0: "CF",
    2: "PF",
    4: "AF",
    6: "ZF",
    7: "SF",
    8: "TF",
    9: "IF",
    10: "DF",
    11: "OF",
    14: "NT",
    16: "RF",
    17: "VM",
    18: "AC",
    19: "VIF",
    20: "VIP",
    21: "ID",
}

TYPES: Final = {
    "org.gnu.gdb.i386.core": '<flags id="flags" size="4">'
    + "".join(f'<field name="{name}" start="{bit}" end="{bit}"/>' for bit, name in FLAGS.items())
    + "</flags>",
    "org.gnu.gdb.i386.sse": '<vector id="v4f" type="ieee_single" count="4"/>'
    '<vector id="v2d" type="ieee_double" count="2"/><vector id="v16i8" type="int8" count="16"/>'
    '<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>'
    '<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>'
    '<field name="v16_int8" type="v16i8"/><field name="v4_int32" type="v4i32"/>'
    '<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>',
}


def description() -> bytes:
    """The target description, which GDB reads first."""

    def parts() -> Iterator[str]:
        yield '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
        yield "<architecture>i386:x86-64</architecture>"
        for name, registers in FEATURES:
            yield f'<feature name="{name}">{TYPES.get(name, "")}'
            for register in registers:
                yield f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.kind}"/>'
            yield "</feature>"
        yield "</target>"

    return "".join(parts()).encode()
