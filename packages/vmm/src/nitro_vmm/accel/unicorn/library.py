"""What the native part has for Python: its functions and structures, as ``native/library.c`` exports them."""

import ctypes
from pathlib import Path
from typing import Any, Final

ReadDevice: Final = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int)
WriteDevice: Final = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64)
WriteBytes: Final = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int)
ArmTimer: Final = ctypes.CFUNCTYPE(None, ctypes.c_int64)


class Board(ctypes.Structure):
    """``struct board``."""

    _fields_ = (
        ("read_port", ReadDevice),
        ("write_port", WriteDevice),
        ("read_memory", ReadDevice),
        ("write_memory", WriteDevice),
        ("arm_timer", ArmTimer),
        ("write_bytes", WriteBytes),
    )


class Leaf(ctypes.Structure):
    """``struct leaf``."""

    _fields_ = tuple((name, ctypes.c_uint32) for name in ("number", "eax", "ebx", "ecx", "edx"))


class Library:
    """The library's functions, by the names of their sources."""

    def __init__(self, path: Path) -> None:
        # PyDLL keeps the interpreter's lock, which is right for functions that return at once.
        quick = ctypes.PyDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        self.version = _prototype(quick.nitro_version, number)
        self.supported = _prototype(quick.nitro_supported, number)
        self.symbol = _prototype(quick.nitro_symbol, text, number)
        self.set_original = _prototype(quick.nitro_set_original, None, number, pointer)
        self.not_in_force = _prototype(quick.nitro_not_in_force, text, pointer)
        self.attach = _prototype(
            quick.nitro_attach, pointer, pointer, ctypes.POINTER(Board), ctypes.POINTER(text)
        )
        self.detach = _prototype(quick.nitro_detach, None, pointer)
        self.map_hole = _prototype(quick.nitro_map_hole, text, pointer, ctypes.c_uint64, ctypes.c_uint64)
        self.share_word = _prototype(quick.nitro_share_word, None, pointer, ctypes.c_uint64, pointer)
        self.add_ram = _prototype(
            quick.nitro_add_ram, number, pointer, ctypes.c_uint64, ctypes.c_uint64, pointer
        )
        self.add_leaf = _prototype(quick.nitro_add_leaf, number, pointer, ctypes.POINTER(Leaf))
        self.read_host_tsc = _prototype(quick.nitro_read_host_tsc, ctypes.c_uint64)
        self.set_console = _prototype(quick.nitro_set_console, None, pointer, ctypes.c_uint32)
        self.set_tsc_frequency = _prototype(quick.nitro_set_tsc_frequency, None, pointer, ctypes.c_uint64)
        self.limit_features = _prototype(quick.nitro_limit_features, number, pointer)
        self.watch_programs = _prototype(quick.nitro_watch_programs, None, pointer, number)
        self.watch_page = _prototype(quick.nitro_watch_page, None, pointer, ctypes.c_uint64)
        self.is_at_program = _prototype(quick.nitro_is_at_program, number, pointer)
        self.enter_system_call = _prototype(quick.nitro_enter_system_call, number, pointer)
        self.stop = _prototype(quick.nitro_stop, None, pointer)
        self.forget_stop = _prototype(quick.nitro_forget_stop, None, pointer)
        self.offer = _prototype(quick.nitro_offer, None, pointer, ctypes.c_uint32)
        self.withdraw = _prototype(quick.nitro_withdraw, None, pointer)
        self.crash = _prototype(quick.nitro_crash, text, pointer)
        self.run = _prototype(ctypes.CDLL(str(path)).nitro_run, number, pointer)


def _prototype(function: Any, result: Any, *arguments: Any) -> Any:  # noqa: ANN401 - ctypes has no better
    function.restype = result
    function.argtypes = arguments
    return function
