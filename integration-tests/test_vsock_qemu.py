"""Stock QEMU with a stock kernel on the daemon."""

import shutil
from collections.abc import Iterator

import pytest

from vsock_machines import Guest, Machine, daemon, guest, microvm, q35
from vsock_scenarios import CID, DaemonScenarios


@pytest.fixture(scope="module", params=["microvm", "microvm-legacy", "q35"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64; Debian's package is qemu-system-x86")
    directory = tmp_path_factory.mktemp("machine")
    if request.param == "q35":
        return q35(directory)
    return microvm(directory, legacy=request.param == "microvm-legacy")


@pytest.fixture(scope="module")
def vm(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    directory = tmp_path_factory.mktemp("vm")
    with daemon(directory, CID), guest(machine, directory, CID) as running:
        yield running


class TestQemu(DaemonScenarios):
    """Every scenario."""
