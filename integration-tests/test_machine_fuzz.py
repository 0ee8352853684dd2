"""Random guests on whole machines: a few of those that `nox -s machine-fuzz` runs by the thousand."""

import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

from machine_fuzz import devices, guest, minimise, trial  # noqa: E402
from machine_fuzz.trial import Verdict  # noqa: E402
from nitro_vmm.address_map import BOOT_PAGE_TABLES, LOCAL_APIC  # noqa: E402
from nitro_vmm.machine.machine import Machine  # noqa: E402

SEEDS = range(1, 41)
FOUND = sorted(Path(guest.__file__).with_name("found").glob("*.json"))
"""Guests that were too much for a machine of before."""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_guest_ends_well(seed: int) -> None:
    result = trial.run(guest.make(seed))

    assert result.verdict.good, result


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_driver_ends_well(seed: int) -> None:
    result = trial.run(devices.make(seed))

    assert result.verdict.good, result


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in FOUND])
def test_a_guest_that_was_too_much_ends_well(path: Path) -> None:
    result = trial.run(minimise.load(path))

    assert result.verdict.good, result


def gate(kind: int, *, stack: int = 0) -> bytes:
    """The half of a gate that says how to get to the handlers, on the interrupt stack of this number."""
    low = guest.HANDLERS & 0xFFFF | guest.CODE64 << 16
    return struct.pack("<Q", low | stack << 32 | kind << 40 | guest.HANDLERS >> 16 << 48)


def store(address: int, value: int) -> bytes:
    return struct.pack("<BIBBI", 0xB8, address, 0xC7, 0x00, value)


LEAVE_LONG_MODE = bytes.fromhex(
    "e800000000 58 4883c00a 6a20 50 48cb"  # to 32-bit code: call next; pop rax; add rax,10; push 0x20; ...
    "b818000000 8ed8 8ec0 8ed0 bc00802000"  # data segments and a stack
    "0f20c0 25ffffff7f 0f22c0 b9800000c0 31c0 31d2 0f30"  # paging off, EFER off
)
TIMER = b"".join(
    store(LOCAL_APIC + register, value)
    for register, value in ((0xF0, 0x1FF), (0x3E0, 0xB), (0x320, 0x2_0080), (0x380, 1000))
)
UD2, STI_AND_LOOP = bytes.fromhex("0f0b"), bytes.fromhex("fb ebfe")
TASK_GATE = struct.pack("<Q", guest.TSS_SELECTOR << 16 | 0x85 << 40)
FIRST_PAGE_DIRECTORY = BOOT_PAGE_TABLES + 0x2000
OLD_TROUBLE = {
    "a frame is pushed over the page tables in use": guest.Guest(
        (UD2,),
        (
            (guest.IDT + 16 * 6, gate(0x8E, stack=1)),
            (guest.TSS + 0x24, struct.pack("<Q", FIRST_PAGE_DIRECTORY + 0x10)),
        ),
    ),
    "INT through a task gate outside of long mode": guest.Guest(
        (LEAVE_LONG_MODE, bytes.fromhex("cd20")), ((guest.IDT + 8 * 0x20, TASK_GATE),)
    ),
    "INT3 outside of long mode": guest.Guest((LEAVE_LONG_MODE, b"\xcc"), ()),
    "PAE off in long mode": guest.Guest((bytes.fromhex("0f20e0 24df 0f22e0"), UD2), ()),
    "a timer's vector beyond the IDT, #GP through a trap gate": guest.Guest(
        (bytes.fromhex("0f011c25") + struct.pack("<I", guest.DATA + 0x800), TIMER, STI_AND_LOOP),
        (
            (guest.DATA + 0x800, struct.pack("<HQ", 16 * 32 - 1, guest.IDT)),
            (guest.IDT + 16 * 13, gate(0x8F)),
        ),
    ),
    "SYSCALL in a loop, while EFER has it off": guest.Guest((bytes.fromhex("0f05 ebfc"),), ()),
    "LTR of a null selector, and a timer": guest.Guest(
        (bytes.fromhex("31c0 0f00d8"), TIMER, STI_AND_LOOP), ((guest.IDT + 16 * 0x80, gate(0x8E, stack=1)),)
    ),
}


@pytest.mark.parametrize("what", OLD_TROUBLE)
def test_what_once_stuck_or_killed_the_process_ends_well(what: str) -> None:
    result = trial.run(OLD_TROUBLE[what])

    assert result.verdict.good, result


def test_a_seed_always_makes_the_same_guest() -> None:
    assert guest.make(7) == guest.make(7)
    assert guest.make(7) != guest.make(8)
    assert devices.make(7) == devices.make(7)


def _raise() -> None:
    raise ValueError("on purpose")


@pytest.mark.parametrize(
    ("failure", "verdict"),
    [
        pytest.param(os.abort, Verdict.ABORT, id="abort"),
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGKILL), Verdict.SIGNAL, id="signal"),
        pytest.param(_raise, Verdict.TRACEBACK, id="exception"),
        pytest.param(lambda: os.write(2, b"Exception ignored in: hook"), Verdict.TRACEBACK, id="message"),
    ],
)
def test_a_failure_is_noticed(
    monkeypatch: pytest.MonkeyPatch, failure: Callable[[], object], verdict: Verdict
) -> None:
    assemble = trial._assemble  # noqa: SLF001

    def fail(made: guest.Guest) -> object:
        failure()
        return assemble(made)

    monkeypatch.setattr(trial, "_assemble", fail)

    assert trial.run(guest.Guest((), ())).verdict is verdict


def test_a_machine_that_does_not_stop_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "stop", lambda _machine: None)
    endless = guest.Guest((b"\xeb\xfe",), ())

    assert trial.run(endless, stop_s=0.1).verdict is Verdict.UNSTOPPABLE


def test_a_process_that_is_deaf_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "DEAF_S", 0.1)
    monkeypatch.setattr(trial, "_assemble", lambda _made: signal.pause())

    assert trial.run(guest.Guest((), ()), run_s=0, stop_s=0).verdict is Verdict.DEAF


def test_minimising_leaves_what_fails() -> None:
    operations = tuple(bytes([number]) for number in range(20))
    whole = guest.Guest(operations, ((1, b"one"), (2, b"two")))

    small = minimise.minimise(
        whole, lambda made: {b"\x03", b"\x0b"} <= set(made.operations) and (2, b"two") in made.tables
    )

    assert small == guest.Guest((b"\x03", b"\x0b"), ((2, b"two"),))


def test_a_kept_guest_is_read_back(tmp_path: Path) -> None:
    made = guest.make(3)

    minimise.save(made, tmp_path / "kept.json", seed=3)

    assert minimise.load(tmp_path / "kept.json") == made
