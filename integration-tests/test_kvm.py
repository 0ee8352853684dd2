"""Enclaves on KVM with a real kernel: several processors, and the same as on the emulated one.

They need a KVM that can run Linux; `nox -s kvm` has one on any host.
"""

from pathlib import Path

import pytest
import trio

from nitro_vmm import Enclave, EnclaveConfig
from nitro_vmm.accel.kvm.probe import probe
from vsock_machines import CONTROL_PORT, vmm_image

pytestmark = pytest.mark.slow

PATIENCE_S = 600
"""How long a boot may take, seconds: long, because the processor of `nox -s kvm` is emulated itself."""


@pytest.fixture(scope="module", autouse=True)
def _kvm() -> None:
    verdict = probe()
    if not verdict.usable:
        pytest.skip(verdict.reason)


@pytest.fixture(scope="module")
def agent_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An enclave that connects to its parent, and sends no heartbeat."""
    return vmm_image(tmp_path_factory.mktemp("agent"))


@pytest.mark.parametrize("processors", [1, 2, 4])
async def test_the_kernel_starts_all_processors(
    agent_image: Path, processors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    config = EnclaveConfig(
        eif_path=agent_image,
        accelerator="kvm",
        processors=processors,
        memory_mib=128,
        boot_timeout_s=3600,
        cmdline_append="loglevel=7",
    )
    vm = Enclave(config)

    with trio.fail_after(PATIENCE_S), vm.listen(CONTROL_PORT) as listener:
        async with vm, await listener.accept():
            vm.terminate("it has booted")
        printed = b"".join([piece async for piece in vm.console.stream()])

    if processors == 1:
        assert b"Hypervisor detected: KVM" in printed
    else:
        assert f"Brought up 1 node, {processors} CPUs".encode() in printed
    assert b"kvm-clock: Using msrs" in printed
