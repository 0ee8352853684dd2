"""What tests must know of the host's processor: whether its KVM can run Linux, and how slow it is."""

import os
from pathlib import Path
from typing import Final

import pytest

from nitro_vmm.accel.kvm.probe import probe

CPUINFO: Final = Path("/proc/cpuinfo")


def runs_in_qemu() -> bool:
    """Whether this host's processor is emulated itself, as in `nox -s kvm`."""
    return "QEMU TCG" in CPUINFO.read_text()


SLOWER: Final = 10 if runs_in_qemu() else 1
"""How many times as long as elsewhere a test waits for what should come. A start of Python alone may take a
minute where the processor is emulated and the computer is busy."""
TOO_MUCH_FOR_QEMU: Final = ("d-ltr_null_timer",)
"""Hostile kernels at which QEMU's emulation of a processor with KVM aborts, with all that runs in it."""


def has_processor_of_amd() -> bool:
    """Whether enclaves of `vmm run` have the host's own processor, and that is one of AMD's."""
    wanted = os.environ.get("NITRO_VMM_ACCELERATOR", "auto")
    if "AuthenticAMD" not in CPUINFO.read_text():
        return False
    return wanted == "kvm" or (wanted == "auto" and probe().usable)


def skip_what_qemu_does_not_survive(kernel: str) -> None:
    """Skip a test of a hostile kernel that would take the machine of `nox -s kvm` with it."""
    if kernel in TOO_MUCH_FOR_QEMU and runs_in_qemu():
        pytest.skip("QEMU's emulation of a processor with KVM aborts, and takes the whole machine with it")


def require_kvm() -> None:
    """Skip where KVM cannot run Linux; fail where somebody has asked for KVM, as `nox -s kvm` does."""
    verdict = probe()
    if verdict.usable:
        return
    if os.environ.get("NITRO_VMM_ACCELERATOR") == "kvm":
        pytest.fail(verdict.reason)
    pytest.skip(verdict.reason)
