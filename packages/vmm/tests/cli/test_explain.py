"""Codes are explained, machines examined, mistakes guessed; and no command ever shows a traceback."""

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from nitro_vmm.cli import main
from nitro_vmm.cli.exit_code import EXPLANATIONS, ExitCode
from nitro_vmm.cli.main import parser
from nitro_vmm.enclave.causes import CAUSES
from vmm_command import VMM, Vmm


def test_every_exit_code_and_cause_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    codes = [*(str(int(code)) for code in ExitCode), *(cause.code for cause in CAUSES), "E26", "(b03)", "138"]

    assert [code for code in codes if main(["explain", code]) != 0] == []
    assert set(EXPLANATIONS) == {int(code) for code in ExitCode}
    assert "four times its image" in capsys.readouterr().out


@pytest.mark.parametrize("code", ["E61", "B99", "99", "", "x", "-"])
def test_codes_that_are_none(vmm: Vmm, code: str) -> None:
    done = vmm("explain", code)

    assert done.returncode == ExitCode.USAGE
    assert "there is no code" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "usage", "hint"),
    [
        (["rnu", "a.eif"], "usage: vmm ", "did you mean run?"),
        (["run", "a.eif", "--memory-mb", "1"], "usage: vmm run ", "did you mean --memory-mib?"),
        (["logs", "--folow", "x"], "usage: vmm logs ", "did you mean --follow?"),
        (["ps", "what"], "usage: vmm ps ", "vmm ps --help"),
    ],
)
def test_did_you_mean(vmm: Vmm, arguments: list[str], usage: str, hint: str) -> None:
    done = vmm(*arguments)

    assert usage in done.stderr
    assert hint in done.stderr
    assert done.returncode == ExitCode.USAGE


def test_doctor_looks_at_this_machine(vmm: Vmm) -> None:
    plain = vmm("doctor")
    findings = json.loads(vmm("doctor", "--json").stdout)

    assert plain.returncode in (ExitCode.ENDED, ExitCode.HOST)
    assert [finding["what"] for finding in findings] == [
        *("system", "Python", "packages", "accelerator", "open files", "address space"),
        *("memory", "runtime directory", "test root"),
    ]
    assert len([line for line in plain.stdout.splitlines() if line[:4] in ("ok  ", "BAD ")]) == len(findings)


def test_doctor_finds_what_is_bad(vmm: Vmm, tmp_path: Path) -> None:
    (vmm.runtime / "nitro-vmm").mkdir(mode=0o755)
    (vmm.runtime / "nitro-vmm").chmod(0o777)

    done = vmm("doctor")
    (vmm.runtime / "nitro-vmm").chmod(0o700)

    assert done.returncode == ExitCode.HOST
    assert "BAD  registry: HostError" in done.stdout
    assert "hint: remove it, or: chmod 700" in done.stdout


ODD = ["", "--", "\x1b[31m", "a" * 5000, "../..", "/dev/null", "\udcff"]


NAMES = (
    *("run", "ps", "describe", "stats", "logs", "console", "attest", "stop", "terminate", "wait", "rm"),
    *("cache", "doctor", "explain", "init", "nitro-cli", "completion"),
)


@pytest.mark.parametrize("command", NAMES)
def test_no_traceback_whatever_is_given(vmm: Vmm, command: str, tmp_path: Path) -> None:
    for odd in ODD:
        done = subprocess.run(
            [*VMM, command, os.fsencode(odd)],
            input=b"",
            capture_output=True,
            check=False,
            timeout=60,
            cwd=tmp_path,  # `vmm init` makes a directory of what it is given
        )
        assert b"Traceback" not in done.stderr, odd
        assert b"bug of vmm" not in done.stderr, odd


def test_all_commands_are_swept_above() -> None:
    assert f"{{{','.join(sorted(NAMES))}}}" == f"{{{','.join(sorted(_commands()))}}}"


def _commands() -> list[str]:
    actions = [action for action in parser()._actions if action.metavar == "COMMAND"]
    return [str(name) for name in actions[0].choices or ()]


def test_it_dies_with_its_parent(vmm: Vmm, spinning_image: Path) -> None:
    socket_path = spinning_image.with_name("vsock")
    child = [*VMM, "run", str(spinning_image), "--die-with-parent", "--vsock-path", str(socket_path)]
    code = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen({child!r}, stdout=subprocess.PIPE)\n"
        "child.stdout.read(2)\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(int(done.stdout))
        assert select.select([pidfd], [], [], 60)[0]
        os.close(pidfd)

    assert not socket_path.exists()


def test_detached_ones_do_not_die_with_their_parent(vmm: Vmm, image: Path) -> None:
    done = vmm("run", "-d", "--die-with-parent", image)

    assert done.returncode == ExitCode.USAGE
    assert "exclude each other" in done.stderr
