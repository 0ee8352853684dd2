"""Unicorn's public interface, as far as a guest with the native part needs it; ``unicorn.h`` has it in C.

Unicorn's Python package has a binding for all of it and all architectures, which takes longer to import than
the library itself to load. So this takes the library out of that package and calls it, under the binding's
names. `PythonEngine` needs more of it, and uses the binding.
"""

import ctypes
import struct
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from nitro_vmm.errors import HostError

FILE: Final = "lib/libunicorn.so.2"
ARCH_X86: Final = 4
MODE_64: Final = 8
PROT_ALL: Final = 7
HOOK_CODE: Final = 4
ALWAYS: Final = (1, 0)
"""The range of addresses of a hook that is for all: its end is before its beginning."""
CTL_WRITE: Final = 1 << 30
CTL_ARGUMENTS_SHIFT: Final = 26
CTL_USE_EXITS: Final = 4
CTL_EXITS: Final = 6
CTL_FLUSH_TB: Final = 10
CTL_TCG_BUFFER_SIZE: Final = 13

VALUE_BYTES_MAX: Final = 64
"""More than any register has."""

CodeHook = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)


class Register:
    """The numbers of registers (``unicorn/x86.h``); those of debuggers are with them."""

    EFLAGS: Final = 25
    FPSW: Final = 31
    RAX: Final = 35
    RBP: Final = 36
    RBX: Final = 37
    RCX: Final = 38
    RDI: Final = 39
    RDX: Final = 40
    RIP: Final = 41
    RSI: Final = 43
    RSP: Final = 44
    CR0: Final = 50
    CR2: Final = 52
    CR3: Final = 53
    CR4: Final = 54
    FP0: Final = 82
    FP7: Final = 89
    R8: Final = 106
    R12: Final = 110
    R13: Final = 111
    R15: Final = 113
    XMM0: Final = 122
    XMM15: Final = 137
    IDTR: Final = 242
    GDTR: Final = 243
    LDTR: Final = 244
    TR: Final = 245
    FPCW: Final = 246
    MSR: Final = 248
    MXCSR: Final = 249


TABLES: Final = range(Register.IDTR, Register.TR + 1)
FLOATS: Final = range(Register.FP0, Register.FP7 + 1)
VECTORS: Final = range(Register.XMM0, Register.XMM15 + 1)
TABLE: Final = struct.Struct("<H6xQII")
"""``uc_x86_mmr``: selector, base, limit, flags."""
MSR: Final = struct.Struct("<I4xQ")
"""``uc_x86_msr``: the register's number, and its value."""
FLOAT: Final = struct.Struct("<QH")
"""Mantissa, and exponent with the sign."""
WORD: Final = struct.Struct("<Q")
VECTOR_BYTES: Final = 16


@cache
def library() -> Any:  # noqa: ANN401 - ctypes has no better
    """Unicorn's library, with the prototypes of what is used here.

    Raises:
        HostError: It is not installed, or there is no room for it.
    """
    spec = find_spec("unicorn")
    if spec is None or spec.origin is None:
        raise HostError("Unicorn is not installed", hint="pip install nitro-vmm again", code="M21")
    try:
        loaded = ctypes.CDLL(str(Path(spec.origin).parent / FILE))
    except OSError as error:
        raise HostError(
            f"Unicorn's library cannot be loaded: {error}",
            hint="raise the limit of address space (ulimit -v), or install Unicorn again",
            code="M20",
        ) from error
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64
    for name, arguments in {
        "uc_open": (number, number, pointer),
        "uc_close": (pointer,),
        "uc_reg_read": (pointer, number, pointer),
        "uc_reg_write": (pointer, number, pointer),
        "uc_mem_map_ptr": (pointer, size, ctypes.c_size_t, ctypes.c_uint32, pointer),
        "uc_emu_start": (pointer, size, size, size, ctypes.c_size_t),
        "uc_emu_stop": (pointer,),
        "uc_hook_del": (pointer, ctypes.c_size_t),
    }.items():
        getattr(loaded, name).argtypes = arguments
    loaded.uc_strerror.restype = ctypes.c_char_p
    return loaded


def version() -> str:
    """Of the library, such as 2.1.4."""
    major, minor, patch, _ = (library().uc_version(None, None) & 0xFFFF_FFFF).to_bytes(4, "big")
    return f"{major}.{minor}.{patch}"


class Uc:
    """An engine of one 64-bit x86 processor. The methods are the binding's.

    Raises:
        HostError: There is no memory for it.
    """

    def __init__(self) -> None:
        self._library = library()
        self._uch = ctypes.c_void_p()
        self._hooks: dict[int, Any] = {}
        _check(self._library.uc_open(ARCH_X86, MODE_64, ctypes.byref(self._uch)))
        weakref.finalize(self, self._library.uc_close, self._uch)

    def ctl_exits_enabled(self, enabled: bool) -> None:  # noqa: FBT001 - the binding's
        """Whether runs end where `ctl_set_exits` says, and not at an address that is given with each."""
        self._control(CTL_USE_EXITS, ctypes.c_int(enabled))

    def ctl_set_exits(self, exits: Sequence[int]) -> None:
        """Where runs end."""
        array = (ctypes.c_uint64 * len(exits))(*exits)
        self._control(CTL_EXITS, ctypes.cast(array, ctypes.c_void_p), ctypes.c_size_t(len(exits)))

    def ctl_flush_tb(self) -> None:
        """Drop what is translated."""
        self._control(CTL_FLUSH_TB)

    def ctl_set_tcg_buffer_size(self, size: int) -> None:
        """How many bytes of translated code are kept."""
        self._control(CTL_TCG_BUFFER_SIZE, ctypes.c_uint32(size))

    def mem_map_ptr(self, address: int, size: int, permissions: int, pointer: int) -> None:
        """Have memory of this process at a physical address."""
        _check(self._library.uc_mem_map_ptr(self._uch, address, size, permissions, pointer))

    def reg_read(self, register: int, number: int = 0) -> Any:  # noqa: ANN401 - a number, or a tuple for some
        """The value of a register; of a model-specific one if its number is given."""
        buffer = bytearray(VALUE_BYTES_MAX)
        if register == Register.MSR:
            MSR.pack_into(buffer, 0, number, 0)
        pointer = ctypes.byref(ctypes.c_char.from_buffer(buffer))
        _check(self._library.uc_reg_read(self._uch, register, pointer))
        if register == Register.MSR:
            return MSR.unpack_from(buffer)[1]
        if register in TABLES:
            return TABLE.unpack_from(buffer)
        if register in FLOATS:
            return FLOAT.unpack_from(buffer)
        return int.from_bytes(buffer[: VECTOR_BYTES if register in VECTORS else WORD.size], "little")

    def reg_write(self, register: int, value: Any) -> None:  # noqa: ANN401 - as `reg_read` gives
        """Change a register; a model-specific one is written as its number and its value."""
        if register == Register.MSR:
            data = MSR.pack(*value)
        elif register in TABLES:
            data = TABLE.pack(*value)
        elif register in FLOATS:
            data = FLOAT.pack(*value)
        else:
            data = value.to_bytes(VECTOR_BYTES if register in VECTORS else WORD.size, "little")
        _check(self._library.uc_reg_write(self._uch, register, data))

    def hook_add(self, kind: int, callback: Callable[["Uc", int, int, None], object]) -> int:
        """Have a function called before each instruction, with its address and length; returns the hook.

        What it raises is printed by ctypes, and lost.
        """
        function = CodeHook(lambda _uc, address, size, _data: callback(self, address, size, None))
        hook = ctypes.c_size_t()
        _check(
            self._library.uc_hook_add(
                *(self._uch, ctypes.byref(hook), ctypes.c_int(kind), function, None),
                *map(ctypes.c_uint64, ALWAYS),
            )
        )
        self._hooks[hook.value] = function
        return hook.value

    def hook_del(self, hook: int) -> None:
        """Remove a hook."""
        _check(self._library.uc_hook_del(self._uch, hook))
        del self._hooks[hook]

    def emu_start(self, begin: int, until: int) -> None:
        """Run."""
        _check(self._library.uc_emu_start(self._uch, begin, until, 0, 0))

    def emu_stop(self) -> None:
        """End a run; from a hook."""
        _check(self._library.uc_emu_stop(self._uch))

    def _control(self, what: int, *arguments: Any) -> None:  # noqa: ANN401 - ctypes' numbers
        code = CTL_WRITE | len(arguments) << CTL_ARGUMENTS_SHIFT | what
        _check(self._library.uc_ctl(self._uch, ctypes.c_uint32(code), *arguments))


def _check(status: int) -> None:
    if status:
        why = library().uc_strerror(status).decode("ascii")
        raise HostError(f"Unicorn refuses what it is asked for: {why}", code="M21")
