"""A C program does with the security module all that an enclave can, and its document verifies on the host.

It runs twice: on the host, asking a module behind a unix socket, and as the application of a booted enclave,
asking /dev/nsm through the driver of a real kernel.
"""

import base64
import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

import images
from nitro_eif import Eif, Node, guest_init, measure, write_cpio
from nitro_nsm import Nsm, NsmConfig, Policy, Root, ensure_test_root, read_test_root, verify
from nitro_nsm.testing import serving

ROOT = Path(__file__).resolve().parent.parent

SOURCE = Path(__file__).parent / "guest" / "nsm_check.c"
CMDLINE = "reboot=k panic=1 console=ttyS0 quiet"
BOOT_TIMEOUT_S = 60
CHECKS = 49
DOCUMENT = re.compile(r"-----BEGIN DOCUMENT-----\n(.*?)-----END DOCUMENT-----", re.DOTALL)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nsm") / "nsm_check"
    try:
        subprocess.run(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-o", path, SOURCE], check=True)
    except FileNotFoundError:
        pytest.skip("there is no C compiler; Debian's package is gcc")
    return path


def document_in(said: str) -> bytes:
    """The document that the program has printed."""
    match = DOCUMENT.search(said)
    assert match is not None
    return base64.b64decode(match[1])


def check_what_it_said(said: str, root: Root, pcrs: dict[int, bytes]) -> None:
    """All checks held, and the document is genuine: of this moment, of these measurements."""
    results = re.findall(r"^(ok|FAIL) (.*)$", said, re.MULTILINE)
    assert [name for result, name in results if result == "FAIL"] == []
    assert ("ok", "all") in results
    assert len(results) == CHECKS

    verified = verify(
        document_in(said),
        at=datetime.now(UTC),
        root=root.trust,
        policy=Policy(pcrs=pcrs),
        nonce=b"n" * 1024,
    )
    assert list(verified.pcrs) == list(range(32))
    assert verified.user_data is None
    assert verified.public_key is None


def test_over_a_socket(program: Path, tmp_path: Path) -> None:
    root = ensure_test_root(tmp_path)
    pcrs = {index: bytes([index + 1]) * 48 for index in (0, 1, 2)}

    with serving(Nsm(NsmConfig(pcrs=pcrs), root=root), tmp_path / "nsm.sock") as path:
        done = subprocess.run([program, path], stdout=subprocess.PIPE, check=False, text=True)

    check_what_it_said(done.stdout, root, pcrs)
    assert done.returncode == 0


def test_a_module_that_is_not_as_it_should_be_is_noticed(program: Path, tmp_path: Path) -> None:
    with serving(Nsm(NsmConfig(debug_mode=True)), tmp_path / "nsm.sock") as path:
        done = subprocess.run([program, path], stdout=subprocess.PIPE, check=False, text=True)

    assert "FAIL initial-pcr-0 it is zero\n" in done.stdout
    assert "FAIL attest-nonce no document\n" in done.stdout
    assert done.returncode == 1


def test_in_a_booted_enclave(program: Path, tmp_path: Path) -> None:
    pytest.importorskip("nitro_vmm.cli", reason="there is no `vmm run`; install nitro-vmm")
    try:
        kernel = images.nitro_kernel()
    except images.ImageError as error:
        pytest.skip(str(error))
    image = build(tmp_path, kernel, program)
    with Eif.open(image) as eif:
        measured = measure(eif)

    done = subprocess.run(
        images.launch(image, "--vsock-path", str(tmp_path / "vsock")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=BOOT_TIMEOUT_S,
        check=False,
        env=os.environ | {"XDG_DATA_HOME": str(tmp_path / "data")},
    )

    console = done.stdout.decode(errors="replace").replace("\r", "")
    print(console, done.stderr.decode(errors="replace"), sep="\n")
    pcrs = {0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2}
    check_what_it_said(console, read_test_root(tmp_path / "data" / "nitro-nsm"), pcrs)
    assert "init: the application exited with 0\n" in console


def build(directory: Path, kernel: Path, program: Path) -> Path:
    """An image whose application is `program`."""
    ramdisks = {
        "init.cpio": {"dev": Node.directory(), "init": Node.file(guest_init(), 0o755)},
        "application.cpio": {
            "rootfs": Node.directory(),
            "rootfs/nsm_check": Node.file(program.read_bytes(), 0o755),
            "cmd": Node.file(b"/nsm_check\n"),
        },
    }
    image = directory / "nsm.eif"
    command = [images.command("eif"), "build", "--kernel", str(kernel), "--cmdline", CMDLINE]
    for name, files in ramdisks.items():
        with (directory / name).open("wb") as archive:
            write_cpio(archive, files.items())
        command += ["--ramdisk", str(directory / name)]
    subprocess.run([*command, "--output", str(image)], check=True, stdout=subprocess.DEVNULL)
    return image
