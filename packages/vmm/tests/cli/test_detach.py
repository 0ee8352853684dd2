"""What is said of an enclave's process that ends before the enclave runs."""

import sys
from pathlib import Path

import pytest

from nitro_vmm.cli.detach import start


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that is started in the process's place."""
    script = tmp_path / "python"
    script.touch(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    return script


def test_its_code_and_its_words_are_passed_on(process: Path) -> None:
    process.write_text("#!/bin/sh\necho 'vmm: error: no such file (U01)' >&2\nexit 3\n")

    assert start(["run", "a.eif"]) == (3, None, "vmm: error: no such file (U01)")


def test_a_process_that_was_killed_is_said_to_be(process: Path) -> None:
    process.write_text("#!/bin/sh\necho last words >&2\nkill -9 $$\n")

    code, started, said = start(["run", "a.eif"])

    assert (code, started) == (1, None)
    assert said.startswith("last words\nvmm: error: the enclave's process was killed by signal 9")


def test_of_many_words_the_first_64_kibibytes_are_passed_on(process: Path) -> None:
    process.write_text("#!/bin/sh\nprintf '%070000d' 0 >&2\nexit 4\n")

    assert start(["run", "a.eif"]) == (4, None, "0" * 65536)
