"""What an enclave opens stays its own: programs that are started do not inherit it."""

import os
from pathlib import Path

import pytest

from nitro_vmm import Enclave, EnclaveConfig
from nitro_vmm.accel.kvm import Kvm
from nitro_vmm.errors import HostError
from nitro_vmm.machine.bus import AddressSpace


def open_descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink():  # the one of this list is gone already
            found[int(entry.name)] = str(entry.readlink())
    return found


def require_kvm() -> None:
    try:
        Kvm().create_vm([], AddressSpace()).close()
    except HostError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("accelerator", ["unicorn", "kvm"])
async def test_nothing_is_inherited_and_no_event_is_waited_for(
    spinning_image: Path, tmp_path: Path, accelerator: str
) -> None:
    if accelerator == "kvm":
        require_kvm()
    config = EnclaveConfig.model_validate(
        {
            "eif_path": spinning_image,
            "accelerator": accelerator,
            "vsock_path": tmp_path / "vsock",
            "publish": [f"unix:{tmp_path}/web:80", "0:81"],
        }
    )
    before = open_descriptors()

    async with Enclave(config) as enclave:
        opened = {fd: what for fd, what in open_descriptors().items() if before.get(fd) != what}
        inherited = [what for fd, what in opened.items() if os.get_inheritable(fd)]
        blocking = [fd for fd, what in opened.items() if "eventfd" in what and os.get_blocking(fd)]
        enclave.terminate("seen")
        await enclave.wait()

    assert [what for what in opened.values() if "eventfd" in what]
    assert inherited == []
    assert blocking == []
