"""Kernels that Nitro cannot load are refused, before they become an enclave that never starts."""

import gzip
from pathlib import Path

import pytest

from debian_packages import KERNEL
from eif_images import parts
from nitro_eif import (
    Architecture,
    Contents,
    Eif,
    EifFormatError,
    kernel_problem,
    require_bootable,
    write_eif,
)
from nitro_eif.cli import main
from nitro_eif.testing import example_contents

ARM64 = bytes(0x38) + b"ARM\x64" + bytes(0x200)

UNLOADABLE = [
    (b"\x7fELF" + bytes(0x400), "an ELF file (vmlinux)"),
    (b"MZ" + bytes(0x400), "an EFI program"),
    (gzip.compress(ARM64, mtime=0), "compressed with gzip"),
    (b"\1\2\3\4random bytes", "of an unknown kind that starts with 01 02 03 04"),
    (ARM64, "an arm64 Image"),
    (b"short", "of an unknown kind that starts with 73 68 6f 72"),
]


def build(kernel: Path, output: Path, *more: str) -> int:
    ramdisk = output.parent / "ramdisk"
    ramdisk.write_bytes(parts()[3][1])
    arguments = ["--kernel", str(kernel), "--cmdline", "c", "--ramdisk", str(ramdisk)]
    return main(["build", *arguments, *more, "--output", str(output)])


@pytest.mark.parametrize(("data", "kind"), UNLOADABLE)
def test_building_with_such_a_kernel_is_refused_unless_it_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, kind: str
) -> None:
    kernel, output = tmp_path / "kernel", tmp_path / "x.eif"
    kernel.write_bytes(data)

    assert build(kernel, output) == 2
    assert not output.exists()
    error = capsys.readouterr().err
    assert f"eif: error: the kernel is {kind}, and Nitro loads a bzImage only" in error
    assert "  hint: give arch/x86/boot/bzImage" in error

    assert build(kernel, output, "--allow-unbootable") == 0
    assert f"warning: the kernel is {kind}" in capsys.readouterr().err


@pytest.mark.parametrize(("data", "kind"), UNLOADABLE)
def test_an_image_with_such_a_kernel_is_not_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, kind: str
) -> None:
    path = tmp_path / "x.eif"
    contents = example_contents()
    write_eif(
        Contents(kernel=data, cmdline=b"c", ramdisks=contents.ramdisks, metadata=contents.metadata), path
    )

    assert main(["verify", str(path)]) == 1
    assert f"the kernel is {kind}" in capsys.readouterr().out
    assert main(["describe", str(path)]) == 3
    with Eif.open(path) as eif, pytest.raises(EifFormatError, match="Nitro loads") as caught:
        require_bootable(eif)
    assert caught.value.code == "kernel-format"


def test_each_architecture_has_its_kernel() -> None:
    assert kernel_problem(KERNEL, Architecture.X86_64) is None
    assert kernel_problem(ARM64, Architecture.AARCH64) is None
    assert kernel_problem(KERNEL, Architecture.AARCH64) == (
        "the kernel is a bzImage, and Nitro loads an arm64 Image only"
    )
