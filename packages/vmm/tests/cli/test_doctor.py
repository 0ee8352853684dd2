"""What ``vmm doctor`` finds of limits and memory; the machine's own are stood in for."""

import importlib.util
import io
import json
import re
import resource
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from nitro_vmm.accel.unicorn import native
from nitro_vmm.cli import main
from nitro_vmm.cli.exit_code import ExitCode

MIB = 1 << 20


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def findings(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, Any]]]:
    code = main(["doctor", "--json"])
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert printed == json.dumps(found, indent=2) + "\n"
    return code, {finding["what"]: finding for finding in found}


def limit(monkeypatch: pytest.MonkeyPatch, which: int, soft: int) -> None:
    ask = resource.getrlimit
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (soft, soft) if asked == which else ask(asked))


@pytest.mark.parametrize(
    ("descriptors", "enough"), [(255, False), (256, True), (257, True), (resource.RLIM_INFINITY, True)]
)
def test_open_files(
    descriptors: int,
    enough: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit(monkeypatch, resource.RLIMIT_NOFILE, descriptors)

    code, found = findings(capsys)

    assert found["open files"]["ok"] is enough
    assert found["open files"]["fix"] == ("" if enough else "raise ulimit -n")
    assert enough or code == ExitCode.HOST


@pytest.mark.parametrize(
    ("space", "enough", "fact"),
    [
        (2048 * MIB, True, "at most 2048 MiB"),
        (2048 * MIB - 1, False, "at most 2047 MiB"),
        (resource.RLIM_INFINITY, True, "unlimited"),
    ],
)
def test_address_space(
    space: int,
    enough: bool,  # noqa: FBT001
    fact: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit(monkeypatch, resource.RLIMIT_AS, space)

    code, found = findings(capsys)

    assert (found["address space"]["ok"], found["address space"]["fact"]) == (enough, fact)
    assert enough or code == ExitCode.HOST


@pytest.mark.parametrize(("available_kib", "enough"), [(1024 << 10, True), ((1024 << 10) - 1, False)])
def test_memory(
    available_kib: int,
    enough: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "nitro_vmm.cli.doctor.open",
        lambda *_arguments, **_options: io.StringIO(
            f"MemTotal: 9999999 kB\nMemAvailable: {available_kib} kB\n"
        ),
        raising=False,
    )

    code, found = findings(capsys)

    assert found["memory"]["ok"] is enough
    assert found["memory"]["fact"] == f"{available_kib >> 10} MiB are available"
    assert enough or code == ExitCode.HOST


def test_people_are_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit(monkeypatch, resource.RLIMIT_NOFILE, 100)

    code = main(["doctor"])

    printed = capsys.readouterr().out
    assert code == ExitCode.HOST
    assert "BAD  open files: at most 100\n     hint: raise ulimit -n\n" in printed
    assert "ok   system: Linux " in printed
    assert "ok   runtime directory: " in printed


@pytest.mark.parametrize(
    ("suffix", "said"), [(".py", ""), (".cpython-311-x86_64-linux-gnu.so", " (compiled)")]
)
def test_it_says_which_packages_are_compiled(
    suffix: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def find_other(name: str) -> ModuleSpec | None:
        spec = find(name)
        if spec is not None:
            spec.origin = f"{name}{suffix}"
        return spec

    monkeypatch.setattr(importlib.util, "find_spec", find_other)

    _, found = findings(capsys)

    assert re.fullmatch(
        rf"nitro-vmm \S+{re.escape(said)}, nitro-eif \S+, nitro-nsm \S+, nitro-vsock \S+{re.escape(said)}",
        found["packages"]["fact"],
    )


@pytest.mark.parametrize("missing", ["", "it was not built"])
def test_it_says_what_the_emulated_processor_lacks(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "MISSING", missing)

    _, found = findings(capsys)

    finding = found["emulated processor"]
    assert finding["ok"]  # enclaves run, as without KVM
    assert ("without its native part, because it was not built" in finding["fact"]) == bool(missing)
    assert ("gcc" in finding["fix"]) == bool(missing)
