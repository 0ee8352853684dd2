"""Codes are explained, machines examined, mistakes guessed; and no command ever shows a traceback."""

import argparse
import importlib
import json
import os
import pkgutil
import re
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import nitro_eif
import nitro_vmm
import nitro_vsock
from nitro_vmm.accel.kvm.probe import Verdict
from nitro_vmm.cli import codes, main
from nitro_vmm.cli.codes import DISTRIBUTIONS
from nitro_vmm.cli.exit_code import EXPLANATIONS, ExitCode
from nitro_vmm.cli.explanations import EXPLAINED
from nitro_vmm.cli.main import parser
from nitro_vmm.cli.nitro.main import parser as nitro_parser
from nitro_vmm.enclave.causes import CAUSES
from nitro_vmm.errors import UsageError, VmmError
from vmm_command import VMM, Vmm


def test_every_exit_code_and_cause_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    codes = [*(str(int(code)) for code in ExitCode), *(cause.code for cause in CAUSES), "E26", "(b03)", "138"]

    assert [code for code in codes if main(["explain", code]) != 0] == []
    assert set(EXPLANATIONS) == {int(code) for code in ExitCode}
    assert "four times its image" in capsys.readouterr().out


def error_classes() -> list[type[BaseException]]:
    """Every public error class of the four packages that can be imported here."""
    found: dict[type[BaseException], None] = {}
    for name in ("nitro_eif", "nitro_nsm", "nitro_vsock", "nitro_vmm"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if module.name.rpartition(".")[2] in {"__main__", "libnitro"}:
                continue
            with suppress(ImportError):  # an extra that is not installed
                for kind in vars(importlib.import_module(module.name)).values():
                    if isinstance(kind, type) and issubclass(kind, BaseException):
                        found[kind] = None
    return [kind for kind in found if kind.__module__.startswith("nitro_") and kind.__name__[0] != "_"]


def own_code(kind: type[BaseException]) -> str | None:
    if issubclass(kind, VmmError):
        code: str | None = vars(kind).get("code")
        return code
    return DISTRIBUTIONS.get(kind.__module__.partition(".")[0], {}).get(kind.__name__)


def test_every_public_error_class_has_a_code_of_its_own() -> None:
    # `NitroCliError` has AWS's codes, one for each error.
    classes = [kind for kind in error_classes() if kind.__name__ != "NitroCliError"]

    codes = {f"{kind.__module__}.{kind.__name__}": own_code(kind) for kind in classes}

    assert [name for name, code in codes.items() if code not in EXPLAINED] == []
    assert len(set(codes.values())) == len(codes)
    assert len(codes) > 20


def test_every_code_that_the_sources_give_is_explained_and_every_one_explained_is_given() -> None:
    sources = Path(nitro_vmm.__file__).parent.rglob("*.py")
    text = "".join(path.read_text() for path in sources if path.name not in {"codes.py", "explanations.py"})
    given = set(re.findall(r"""\bcode(?:=|(?:: str)? = )"([A-Z]\d\d)\"""", text))
    of_the_table = {value for name, value in vars(codes).items() if name.isupper() and isinstance(value, str)}
    of_the_table |= set(codes.LIMITS.values())
    of_the_table |= {code for classes in DISTRIBUTIONS.values() for code in classes.values()}

    explained = {*EXPLAINED, *(cause.code for cause in CAUSES)}

    assert {code for code in given if code[0] != "E"} <= explained
    assert set(EXPLAINED) == {code for code in given | of_the_table if code in EXPLAINED}


@pytest.mark.parametrize("code", sorted(EXPLAINED))
def test_an_explanation_says_what_why_and_what_to_do(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", code])

    what, why, remedy = capsys.readouterr().out.splitlines()
    assert what.startswith(f"{code}: ")
    assert why.startswith("Why: ")
    assert remedy.startswith("What to do: ")
    assert all(
        len(line) > 12 and line.endswith(".") and not line.endswith("..") for line in (what, why, remedy)
    )


def test_errors_show_their_code(vmm: Vmm, image: Path) -> None:
    assert vmm("run", image.with_name("absent.eif")).stderr.splitlines()[0].endswith(" (M19)")
    assert vmm("logs", "nobody").stderr.splitlines()[0].endswith("there is no enclave nobody (M10)")
    assert "unrecognized arguments: --what (M07)" in vmm("ps", "--what").stderr
    assert "(M16)" in vmm("run", "/dev/null").stderr


def test_codes_are_found_for_errors_of_all_packages() -> None:
    assert codes.code_of(nitro_eif.EifFormatError("x", offset=0)) == "I02"
    assert codes.code_of(nitro_vsock.HostError("x")) == "V03"
    assert codes.code_of(UsageError("x")) == "M01"
    assert codes.code_of(UsageError("x", code="M12")) == "M12"
    assert codes.code_of(PermissionError(13, "no")) == "H05"
    assert codes.code_of(ZeroDivisionError()) == "M06"


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
        *("system", "Python", "packages", "accelerator", "emulated processor", "open files"),
        *("address space", "memory", "runtime directory", "test root"),
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


def test_doctor_says_what_to_do_where_kvm_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr("nitro_vmm.accel.KVM_DEVICE", str(device))
    verdict = Verdict(usable=False, reason="this KVM is odd", hint="ask for another one")
    monkeypatch.setattr("nitro_vmm.accel.kvm.probe.probe", lambda: verdict)

    assert main(["doctor"]) in {ExitCode.ENDED, ExitCode.HOST}

    said = "ok   accelerator: unicorn; the processor is emulated: this KVM is odd\n"
    assert f"{said}     hint: ask for another one\n" in capsys.readouterr().out


ODD = ["", "--", "\x1b[31m", "a" * 5000, "../..", "/dev/null", "\udcff"]


NAMES = (
    *("run", "ps", "describe", "stats", "logs", "console", "attest", "stop", "terminate", "wait", "rm"),
    *("snapshot", "cache", "doctor", "explain", "init", "nitro-cli", "completion"),
)


NITRO_NAMES = (
    *("run-enclave", "describe-enclaves", "terminate-enclave", "console", "build-enclave", "describe-eif"),
    *("sign-eif", "pcr", "explain"),
)

INNER_WORDS = (b"Traceback", b"bug of vmm", b"pydantic", b"validation error", b"Input should", b"Errno ")
"""What no user must see: our insides, and the words of a library for them."""


Sweep = Callable[..., None]


@pytest.fixture
def check_manners(vmm: Vmm, capfd: pytest.CaptureFixture[str]) -> Sweep:
    """Runs a command in this process, and sees that it says nothing of its insides."""

    def check(*arguments: str) -> None:
        with suppress(SystemExit):
            main(arguments)
        said = os.fsencode("".join(capfd.readouterr()))
        assert [word for word in INNER_WORDS if word in said] == [], (arguments, said)

    return check


@pytest.mark.parametrize("command", NAMES)
def test_nothing_of_our_insides_is_seen_whatever_is_given(
    check_manners: Sweep, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `vmm init` makes a directory of what it is given, also of ../.., which must be the test's own as well.
    directory = tmp_path / "some" / "where"
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)

    for odd in ODD:
        check_manners(command, odd)


@pytest.mark.parametrize("command", NAMES)
def test_nor_by_a_process_that_is_given_bytes_of_no_text(vmm: Vmm, command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*VMM, command, b"\xff"], input=b"", capture_output=True, check=False, timeout=60, cwd=tmp_path
    )

    assert [word for word in INNER_WORDS if word in done.stdout + done.stderr] == []


@pytest.mark.parametrize("command", NITRO_NAMES)
def test_nor_with_nitro_cli(check_manners: Sweep, command: str) -> None:
    (options,) = [action for action in nitro_parser()._actions if action.metavar == "COMMAND"]
    assert isinstance(options.choices, dict)
    values = [
        action.option_strings[-1]
        for action in options.choices[command]._actions
        if action.option_strings and action.nargs != 0
    ]

    for odd in ("-1", "/dev/null", "\udcff"):
        check_manners("nitro-cli", command, odd)
        for option in values:
            check_manners("nitro-cli", command, option, odd)
        check_manners("nitro-cli", command, *(word for option in values for word in (option, odd)))


RUN_OPTIONS = sorted(
    option
    for action in parser()._subparsers._group_actions[0].choices["run"]._actions  # type: ignore[union-attr, index]
    for option in action.option_strings[:1]
    if action.nargs != 0 and option != "--ready-fd"
)


@pytest.mark.parametrize("option", RUN_OPTIONS)
def test_nor_with_any_option_of_run(check_manners: Sweep, image: Path, option: str) -> None:
    for odd in ("", "-1", "9" * 30, "/dev/null", "\udcff"):
        check_manners("run", str(image), f"{option}={odd}")


def test_all_commands_are_swept_above() -> None:
    assert sorted(NAMES) == sorted(_commands(parser()))
    assert sorted(NITRO_NAMES) == sorted(_commands(nitro_parser()))


def _commands(of: argparse.ArgumentParser) -> list[str]:
    actions = [action for action in of._actions if action.metavar == "COMMAND"]
    return [str(name) for name in actions[0].choices or ()]


def test_it_dies_with_its_parent(vmm: Vmm, spinning_image: Path) -> None:
    socket_path = spinning_image.with_name("vsock")
    options = ["--console", "--die-with-parent", "--vsock-path", str(socket_path)]
    child = [*VMM, "run", str(spinning_image), *options]
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
