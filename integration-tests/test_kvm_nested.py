"""Some of the tests on KVM, in a machine of QEMU's that has it: the short form of `nox -s kvm`."""

import sys
from pathlib import Path

import pytest

import images
import kvm
from nitro_vmm.accel.kvm.probe import probe

pytestmark = pytest.mark.slow

PATIENCE_S = 1500
TESTS = (
    "packages/vmm/tests/accel/test_kvm.py",
    "packages/vmm/tests/accel/test_kvm_state.py",
    "integration-tests/test_kvm.py::test_an_image_boots_and_its_application_ends[{kernel}]",
    "integration-tests/test_kvm.py::test_the_kernel_starts_all_processors[2]",
    "integration-tests/test_kvm.py::test_documents_of_the_security_module_verify",
    "integration-tests/test_enclave.py::test_two_enclaves_in_one_loop_are_reached_both_ways",
)

SLOW_THERE = "packages/vmm/tests/accel/test_kvm.py::test_system_registers_survive_their_structure"
"""It needs no KVM, and runs anywhere else."""


def has_nitro_kernel() -> bool:
    try:
        images.nitro_kernel()
    except images.ImageError:
        return False
    return True


def test_kvm_in_a_machine_of_qemus(capfd: pytest.CaptureFixture[str]) -> None:
    if probe().usable:
        pytest.skip("this host has KVM itself, so the tests run without QEMU")
    if any(Path(sys.prefix).is_relative_to(place) for place in kvm.EMPTY):
        pytest.skip(f"{sys.prefix} is hidden in there: the machine has its own {' and '.join(kvm.EMPTY)}")
    kernel = "nitro" if has_nitro_kernel() else "debian"
    try:
        kvm.prepare()
        images.hello(kernel)
        if kernel == "nitro":
            images.agent()
            images.nsm_check()
    except (kvm.KvmError, *images.ERRORS) as error:
        pytest.skip(str(error))
    tests = [test.format(kernel=kernel) for test in TESTS]
    options = ["-p", "no:cacheprovider", "--durations=20", "--deselect", SLOW_THERE]
    command = [sys.executable, "-m", "pytest", *options, *tests]

    code = kvm.run_here(command, timeout_s=PATIENCE_S, NITRO_VMM_ACCELERATOR="kvm")

    out, _ = capfd.readouterr()
    assert code == 0, out
    assert " passed" in out
