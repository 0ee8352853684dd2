"""The process that makes a saved machine for the next launch."""

import sys
import threading
from pathlib import Path

import pytest

from nitro_vmm import EnclaveConfig
from nitro_vmm.enclave.maker import make_saved_machine
from states import parameters


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the arguments and variables of the process that was started, one a line."""
    file = tmp_path / "told"
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\n{{ printf "%s\\n" "$@"; env; }} > {file}\n')
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NITRO_VMM_MEMORY_MIB", "4096")
    return file


def wait_for_it() -> None:
    for thread in threading.enumerate():
        if thread.name == "saved machine":
            thread.join()


def test_it_makes_the_machine_of_this_enclave(told: Path, tmp_path: Path) -> None:
    config = EnclaveConfig(eif_path=tmp_path / "a.eif", boot_timeout_s=45)

    make_saved_machine(
        config, parameters(kind="image", accelerator="unicorn", memory_bytes=300 << 20, processors=1)
    )
    wait_for_it()

    lines = told.read_text().splitlines()
    assert lines[:6] == ["-P", "-m", "nitro_vmm", "snapshot", "--cached", "--quiet"]
    assert lines[6:15] == [
        *(str(tmp_path / "a.eif"), "--accel", "unicorn", "--memory-mib", "300"),
        *("--processors", "1", "--boot-timeout-s", "45.0"),
    ]
    assert not [line for line in lines if line.startswith(("NITRO_VMM_", "--kernel", "--seqpacket"))]


def test_what_the_guest_can_tell_is_as_here(told: Path, tmp_path: Path) -> None:
    config = EnclaveConfig(
        eif_path=tmp_path / "a.eif", cmdline_append="-x", quiet_kernel=True, seqpacket=True
    )

    make_saved_machine(config, parameters(kind="kernel"))
    wait_for_it()

    lines = told.read_text().splitlines()
    assert lines[15:19] == ["--kernel", "--cmdline-append=-x", "--quiet-kernel", "--seqpacket"]
