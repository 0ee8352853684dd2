"""Unicorn's library without its binding."""

import ctypes
import mmap
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nitro_vmm.accel.unicorn import private, public
from nitro_vmm.accel.unicorn.public import Register, Uc
from nitro_vmm.errors import HostError

LOADED = """
import sys
from nitro_vmm.accel import open_accelerator

open_accelerator("unicorn")
print(sorted({"unicorn", "zipfile"} & set(sys.modules)))
"""


@pytest.fixture
def uc() -> Uc:
    engine = Uc()
    engine.ctl_exits_enabled(True)
    return engine


def test_the_numbers_are_those_of_the_binding() -> None:
    from unicorn import unicorn_const, x86_const  # after the native part, which must be loaded first

    names = [name for name in vars(Register) if name.isupper()]

    assert {name: getattr(x86_const, f"UC_X86_REG_{name}") for name in names} == {
        name: getattr(Register, name) for name in names
    }
    assert (public.ARCH_X86, public.MODE_64) == (unicorn_const.UC_ARCH_X86, unicorn_const.UC_MODE_64)
    assert (public.PROT_ALL, public.HOOK_CODE) == (unicorn_const.UC_PROT_ALL, unicorn_const.UC_HOOK_CODE)
    assert public.CTL_USE_EXITS == unicorn_const.UC_CTL_UC_USE_EXITS
    assert public.CTL_EXITS == unicorn_const.UC_CTL_UC_EXITS
    assert public.CTL_FLUSH_TB == unicorn_const.UC_CTL_TB_FLUSH
    assert public.CTL_TCG_BUFFER_SIZE == unicorn_const.UC_CTL_TCG_BUFFER_SIZE
    assert public.version() == private.UNICORN_VERSION


@pytest.mark.parametrize(
    ("register", "value"),
    [
        (Register.RAX, 0x1234_5678_9ABC_DEF0),
        (Register.R15, (1 << 64) - 1),
        (Register.XMM0, (1 << 128) - 3),
        (Register.XMM15, 1 << 127),
        (Register.FPCW, 0x37F),
        (Register.GDTR, (0, 0x1000, 0x77, 0)),
        (Register.TR, (8, 0x2000, 0x67, 0x8B00)),
        (Register.FP0 + 3, (0x8000_0000_0000_0001, 0x4001)),
    ],
)
def test_registers_keep_what_is_written(uc: Uc, register: int, value: object) -> None:
    uc.reg_write(register, value)

    assert uc.reg_read(register) == value


def test_model_specific_registers_have_numbers_of_their_own(uc: Uc) -> None:
    uc.reg_write(Register.MSR, (0xC000_0082, 0x1234))

    assert uc.reg_read(Register.MSR, 0xC000_0082) == 0x1234
    assert uc.reg_read(Register.MSR, 0xC000_0081) == 0


def test_controls_are_encoded_as_in_its_header(uc: Uc, monkeypatch: pytest.MonkeyPatch) -> None:
    """``UC_CTL`` in unicorn.h: what is asked for, the number of arguments from bit 26 on, bit 30 to write."""
    asked: list[int] = []

    def note(_engine: object, code: ctypes.c_uint32, *arguments: object) -> int:
        asked.append(code.value)
        assert code.value >> 26 & 0xF == len(arguments)
        return 0

    monkeypatch.setattr(uc, "_library", SimpleNamespace(uc_ctl=note))

    uc.ctl_exits_enabled(True)
    uc.ctl_set_exits([1, 2, 3])
    uc.ctl_flush_tb()
    uc.ctl_set_tcg_buffer_size(1 << 20)

    assert asked == [0x4400_0004, 0x4800_0006, 0x4000_000A, 0x4400_000D]


def test_what_it_refuses_is_an_error(uc: Uc) -> None:
    with pytest.raises(HostError, match="Invalid"):
        uc.mem_map_ptr(1, 1, public.PROT_ALL, 0)


def test_a_guest_needs_no_binding() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_a_library_that_cannot_be_loaded_is_the_hosts_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "FILE", "lib/none.so")
    public.library.cache_clear()
    try:
        with pytest.raises(HostError, match="cannot be loaded") as caught:
            public.library()
    finally:
        public.library.cache_clear()

    assert "ulimit -v" in caught.value.hint


def test_a_run_takes_as_long_as_it_takes() -> None:
    """``mov ecx, 5000000``; ``dec ecx``; ``jnz`` back to it (Intel SDM vol. 2)."""
    code = bytes.fromhex("b9404b4c00 ffc9 75fc")
    memory = mmap.mmap(-1, 1 << 16)
    memory[: len(code)] = code
    pin = ctypes.c_char.from_buffer(memory)
    uc = Uc()
    uc.mem_map_ptr(0x1000, 1 << 16, public.PROT_ALL, ctypes.addressof(pin))
    uc.reg_write(Register.RCX, 7)

    uc.emu_start(0x1000, 0x1000 + len(code))

    assert uc.reg_read(Register.RCX) == 0
