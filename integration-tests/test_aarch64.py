"""An image for aarch64, whole: a kernel and our init boot in QEMU, and our daemon hears the heartbeat."""

import shutil
import subprocess
from pathlib import Path

import pytest

import debian
import images
from nitro_eif import Architecture, Eif, HostError, guest_init
from vsock_machines import daemon

CID = 16
MEMORY_MIB = 512
BOOT_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose application says what it runs on, and ends with 7."""
    if shutil.which("qemu-system-aarch64") is None:
        pytest.skip("no qemu-system-aarch64; Debian's package is qemu-system-arm")
    directory = tmp_path_factory.mktemp("aarch64")
    apt = debian.Apt(debian.CACHE.with_name(f"{debian.SUITE}-arm64"), architecture="arm64")
    try:
        guest_init(Architecture.AARCH64)
        kernel, busybox = apt.package("linux-image-cloud-arm64"), apt.package("busybox-static")
    except (HostError, debian.DebianError) as error:
        pytest.skip(str(error))
    root = directory / "root"
    subprocess.run(["dpkg-deb", "--extract", busybox, root], check=True)
    output = directory / "hello.eif"
    subprocess.run(
        [
            *(images.command("eif"), "build", "--arch", "aarch64", "--rootfs", root, "--output", output),
            *("--kernel-package", kernel, "--module", "virtio_pci"),
            *("--cmd", "/usr/bin/busybox sh -c 'echo application on $(busybox uname -m); exit 7'"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return output


def test_it_boots_to_its_heartbeat_and_runs_its_application(image: Path, tmp_path: Path) -> None:
    with Eif.open(image) as eif:
        (tmp_path / "kernel").write_bytes(eif.kernel)
        (tmp_path / "initrd").write_bytes(b"".join(eif.ramdisks))
    # QEMU's board has a PCI bus and another console than an enclave.
    append = "console=ttyAMA0 reboot=k panic=1 quiet"

    with daemon(tmp_path, CID, more=",heartbeat=true"):
        done = subprocess.run(
            [
                *("qemu-system-aarch64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                *("-M", "virt,memory-backend=memory", "-cpu", "cortex-a57", "-m", f"{MEMORY_MIB}M"),
                *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"),
                *("-kernel", tmp_path / "kernel", "-initrd", tmp_path / "initrd", "-append", append),
                *("-chardev", f"socket,id=vhost,path={tmp_path}/vhost{CID}"),
                *("-device", "vhost-user-vsock-pci,chardev=vhost", "-serial", "stdio"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=BOOT_TIMEOUT_S,
            check=True,
        )

    console = done.stdout.decode(errors="replace").replace("\r", "")
    # The init runs the application only when its heartbeat was answered.
    assert "application on aarch64\n" in console
    assert "init: the application exited with 7\n" in console
