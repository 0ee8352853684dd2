"""A KVM that can run Linux, or a skip."""

import os

import pytest

from nitro_vmm.accel.kvm.probe import probe


def require_kvm() -> None:
    """Skip where KVM cannot run Linux; fail where somebody has asked for KVM, as `nox -s kvm` does."""
    verdict = probe()
    if verdict.usable:
        return
    if os.environ.get("NITRO_VMM_ACCELERATOR") == "kvm":
        pytest.fail(verdict.reason)
    pytest.skip(verdict.reason)
