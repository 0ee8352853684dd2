"""What the probe of KVM has a guest do, on the emulated processor, which is everywhere and runs Linux."""

import mmap
import struct

import pytest

from nitro_vmm.accel import open_accelerator
from nitro_vmm.accel.kvm import probe
from nitro_vmm.accel.kvm.probe import STEPS, XSAVE_STEP, Step, Verdict, run_steps, steps_for
from nitro_vmm.accel.kvm.structures import CpuidEntry
from nitro_vmm.address_map import BOOT_PAGE_TABLES, GIB, MIB

CRASH = Step("a crash", "0f0b")  # ud2, for which there is no handler
LOOP = Step("an endless loop", "ebfe")  # jmp to itself
OTHER_VALUE = Step("device memory", "bb000000d0 ff4304")  # mov ebx,MMIO; inc dword [rbx+4]


def run(*steps: Step) -> Verdict:
    return run_steps(steps, open_accelerator("unicorn").create_vm)


def test_a_processor_that_runs_linux_takes_all_steps() -> None:
    assert run(*STEPS) == Verdict(usable=True)


@pytest.mark.parametrize(
    ("function", "ecx", "there"), [(1, 1 << 26, True), (1, ~(1 << 26), False), (7, 1 << 26, False)]
)
def test_avx_is_tried_where_the_processor_has_xsave(function: int, ecx: int, there: object) -> None:
    features = [CpuidEntry(0, 0, 0, 0, 0, 0, 0), CpuidEntry(function, 0, 0, 0, 0, ecx & 0xFFFF_FFFF, 0)]

    assert (XSAVE_STEP in steps_for(features)) is there


@pytest.mark.parametrize("before", [0, 1, 3])
def test_the_step_at_which_the_guest_crashes_is_named(before: int) -> None:
    verdict = run(*STEPS[:before], CRASH, *STEPS[before:])

    assert not verdict.usable
    assert verdict.reason.startswith("this KVM cannot run Linux: a crash: ")
    assert "nested virtualization" in verdict.hint


def test_a_guest_that_gets_stuck_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PATIENCE_S", 0.05)

    verdict = run(LOOP, *STEPS)

    assert verdict.reason == "this KVM cannot run Linux: an endless loop: it hangs for 0.05 s"


def test_a_device_that_hears_something_else_is_not_good_enough() -> None:
    verdict = run(*STEPS[:-1], OTHER_VALUE)

    assert "device memory" in verdict.reason


def test_the_guests_addresses_are_physical_ones() -> None:
    """The processor would ask for memory that is not there, if only it were to use these pages."""
    memory = mmap.mmap(-1, 4 * MIB)
    probe._fill(memory, ())

    def physical(address: int) -> int:
        table = BOOT_PAGE_TABLES
        for shift in (39, 30, 21):
            (entry,) = struct.unpack_from("<Q", memory, table + 8 * (address >> shift & 511))
            assert entry & 7 == 7, "present, writable, for users"
            table = entry & ~0xFFF
        assert entry & 0x80, "a large page"
        return int(entry & ~0x1FFFFF | address & 0x1FFFFF)

    addresses = [page + 5 for page in range(0, 4 * GIB, 2 * MIB)]
    assert [physical(address) for address in addresses] == addresses
