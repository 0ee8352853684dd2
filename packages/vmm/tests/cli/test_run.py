"""The command line's manners: help, codes, JSON; and what is asked of images and options before a boot."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from nitro_eif import Architecture, BuildMetadata, Contents, Eif, Metadata, measure, write_eif
from nitro_vmm import EnclaveConfig, UsageError, VmmError
from nitro_vmm.address_map import MIB
from nitro_vmm.cli import main, parser
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.enclave.image import choose_memory_mib, measure_bootable
from nitro_vmm.testing import tiny_kernel

METADATA = Metadata(image_name="test", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00")).pack()


def image_of(beside: Path, code: bytes) -> Path:
    path = beside.with_name("code.eif")
    contents = Contents(kernel=tiny_kernel(code), cmdline=b"", ramdisks=[b"r"], metadata=METADATA)
    write_eif(contents, path)
    return path


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys; from nitro_vmm.cli import main; sys.exit(main())", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_has_an_example_and_the_exit_codes(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    said = capsys.readouterr().out
    assert caught.value.code == 0
    assert "vmm run --console hello.eif --vsock-path /tmp/hello.vsock" in said
    for code in ExitCode:
        assert str(int(code)) in said.partition("exit codes:")[2]


def test_help_loads_no_processor() -> None:
    code = (
        "import sys; from nitro_vmm.cli import parser; parser().format_help(); "
        "sys.exit(', '.join({'unicorn', 'trio', 'pydantic', 'cryptography'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stderr == "\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["walk"], ["run", "a.eif", "--colour"], ["run", "--vsock", "tcp:1", "a.eif"]],
)
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: vmm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "give one image"),
        (["run", "a.eif", "--eif-path", "b.eif"], "give one image"),
        (["run", "a.eif", "--vsock", "vhost-user:/x", "--vsock-path", "/y"], "exclude each other"),
        (["run", "a.eif", "--vsock", "vhost-user:/x", "--seqpacket"], "give the daemon --seqpacket"),
        (["run", "a.eif", "--memory", "1"], "--memory-mib 1: must be at least 64"),
        (["run", "a.eif", "--memory", "much"], "--memory-mib much: must be a whole number"),
        (["run", "a.eif", "--enclave-cid", "2"], "--cid 2: must be 0, for a free one, or at least 4"),
        (["run", "a.eif", "--publish", "web"], "--publish web: must be [ADDRESS:]PORT:ENCLAVE_PORT"),
        (["run", "a.eif", "--proxy", "80"], "--proxy 80: must be PORT=HOST:PORT"),
        (["run", "a.eif", "--root-cert", "c.pem"], "--root-cert needs root_key"),
        (["run", "a.eif", "--name", "../x"], "--name ../x: must match"),
        (["run", "a.eif", "--config", "/nowhere.toml"], "/nowhere.toml is not a file"),
        (["run", "a.eif", "--instance-id", "server"], "--instance-id server: "),
    ],
)
def test_options_that_cannot_be(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitCode.USAGE

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vmm: error: ")
    assert said in err
    assert "\n  hint: " in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("vmm ")


def test_completion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)

    assert main(["completion", "bash"]) == ExitCode.HOST
    assert "pip install 'nitro-vmm[completion]'" in capsys.readouterr().err


def test_nitro_cli_spellings() -> None:
    arguments = parser().parse_args(
        ["run", "--eif-path", "a.eif", "--memory", "256", "--enclave-cid", "7", "--debug-mode"]
    )

    assert (arguments.eif_path, arguments.memory_mib, arguments.cid) == (
        Path("a.eif"),
        "256",
        "7",
    )


def test_the_console_is_the_output(image: Path) -> None:
    done = call("run", "--console", str(image))

    assert (done.returncode, done.stdout) == (0, "hi")
    assert f"vmm: booting {image}" in done.stderr
    assert "halted for good" in done.stderr


@pytest.mark.parametrize(
    ("options", "printed", "told"),
    [
        ((), "", True),
        (("--no-console",), "", False),
        (("--console",), "hi", False),
        (("--debug-mode",), "hi", False),
        (("--debug-mode", "--no-console"), "", False),
    ],
)
def test_the_console_is_shown_in_debug_mode_or_on_request(
    image: Path,
    options: tuple[str, ...],
    printed: str,
    told: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    done = call("run", str(image), *options)

    assert (done.returncode, done.stdout) == (0, printed)
    assert ("the console is hidden, as on AWS in production mode; --console shows it" in done.stderr) is told


def test_typing_goes_nowhere_while_the_console_is_hidden(image: Path, tmp_path: Path) -> None:
    typed = tmp_path / "typed"
    typed.write_text("for a shell's next command")

    with typed.open() as stdin:
        subprocess.run(
            [sys.executable, "-m", "nitro_vmm", "run", str(image)],
            stdin=stdin,
            capture_output=True,
            check=True,
        )
        left = os.read(stdin.fileno(), 100)

    assert left == b"for a shell's next command"


def test_json(image: Path) -> None:
    done = call("run", str(image), "--console", "--json", "--quiet", "--cid", "21", "--memory-mib", "64")

    report = json.loads(done.stdout)
    assert done.stdout == json.dumps(report, indent=2) + "\n"
    assert (done.returncode, done.stderr) == (0, "hi")
    assert list(report) == [
        *("ExitCode", "Outcome", "Reason", "Seconds", "HeartbeatSeconds"),
        *("EnclaveID", "EnclaveCID", "MemoryMiB", "Measurements", "Mode", "Application", "Cause"),
    ]
    assert (report["Outcome"], report["EnclaveCID"], report["MemoryMiB"]) == ("ENDED", 21, 64)
    with Eif.open(image) as eif:
        assert report["Measurements"]["PCR0"] == measure(eif).pcr0.hex()


def test_documents_measurements_in_debug_mode(image: Path) -> None:
    report = json.loads(call("run", str(image), "--json", "--debug-mode").stdout)

    assert report["Mode"] == "debug"
    assert report["Measurements"]["PCR0"] == "0" * 96
    with Eif.open(image) as eif:
        assert report["ImageMeasurements"] == measure(eif).as_json()


@pytest.mark.parametrize(
    ("text", "code", "application"),
    [
        (b"init: the application exited with 3\n", 3, {"status": 3, "signal": None}),
        (b"init: the application was killed by signal 9\n", 137, {"status": None, "signal": 9}),
        (b"child exited with error\n", 1, {"status": None, "signal": None}),
        (b"bye\n", 0, None),
    ],
)
def test_the_applications_end(
    image_that_prints: Callable[[bytes], Path], text: bytes, code: int, application: dict[str, int] | None
) -> None:
    image = image_that_prints(text)

    plain = call("run", str(image), "--json")
    from_app = call("run", str(image), "--exit-code-from", "app")

    assert (plain.returncode, from_app.returncode) == (0, code)
    assert json.loads(plain.stdout)["Application"] == application
    assert ("; the application " in from_app.stderr) is (application is not None)


def test_the_cause_of_a_failure_is_said(image_that_prints: Callable[[bytes], Path]) -> None:
    image = image_that_prints(b"Failed to execute /init (error -8)\nKernel panic - not syncing: No init\n")

    done = call("run", str(image))

    assert done.returncode == ExitCode.PANIC
    assert "vmm: why: the image's init is no program of this processor (B03)" in done.stderr
    assert "  hint: build it for x86_64" in done.stderr
    assert done.stderr.endswith("vmm: --console shows what it printed\n")


def test_no_heartbeat_of_a_kernel_that_prints_nothing(image: Path) -> None:
    done = call("run", str(image_of(image, bytes.fromhex("ebfe"))), "--boot-timeout-s", "1", "--json")

    report = json.loads(done.stdout)
    assert (done.returncode, report["Cause"]["code"]) == (ExitCode.BOOT_TIMEOUT, "B12")


def test_a_kernel_that_nitro_cannot_load_is_told_once_in_eifs_words(image: Path) -> None:
    said = call("run", str(image)).stderr

    assert said.count("the kernel is an ELF file (vmlinux), and Nitro loads a bzImage only") == 1


def test_a_missing_image(tmp_path: Path) -> None:
    path = tmp_path / "absent.eif"

    done = call("run", str(path))

    assert (done.returncode, done.stdout) == (ExitCode.IMAGE, "")
    assert f"vmm: error: {path}: No such file" in done.stderr


# Images and configurations.


def test_memory_by_default(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"")
    assert choose_memory_mib(EnclaveConfig(eif_path=path)) == 512

    with path.open("wb") as image:
        image.truncate(200 * MIB + 1)
    assert choose_memory_mib(EnclaveConfig(eif_path=path)) == 801


def test_memory_must_be_four_times_the_image(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as image:
        image.truncate(20 * MIB)
    assert choose_memory_mib(EnclaveConfig(eif_path=path, memory_mib=80)) == 80

    with pytest.raises(
        UsageError, match="needs four times as much memory, 80 MiB; it was given 79"
    ) as caught:
        choose_memory_mib(EnclaveConfig(eif_path=path, memory_mib=79))

    assert caught.value.hint == "--memory-mib 80"


def test_an_image_is_measured(image: Path) -> None:
    with Eif.open(image) as eif:
        assert measure_bootable(eif) == measure(eif)


def test_an_image_for_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "arm.eif"
    contents = Contents(
        kernel=b"k",
        cmdline=b"quiet",
        ramdisks=[b"r"],
        metadata=METADATA,
        architecture=Architecture.AARCH64,
    )
    write_eif(contents, path)

    with Eif.open(path) as eif, pytest.raises(VmmError, match="aarch64"):
        measure_bootable(eif)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_mib", 63),
        ("cid", 3),
        ("cid", 0xFFFF_FFFF),
        ("boot_timeout_s", 0),
        ("boot_timeout_s", float("nan")),
        ("instance_id", "i-xyz"),
        ("colour", "red"),
    ],
)
def test_configurations_that_cannot_be(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        EnclaveConfig.model_validate({"eif_path": "a.eif", name: value})


def test_a_configuration_does_not_change() -> None:
    config = EnclaveConfig(eif_path=Path("a.eif"))

    with pytest.raises(ValidationError):
        config.cid = 5  # type: ignore[misc]


def test_a_timeline_is_written_as_json_and_as_a_page(image: Path) -> None:
    as_json, as_page = image.with_name("boot.json"), image.with_name("boot.html")

    assert call("run", str(image), "--timeline", str(as_json)).returncode == 0
    assert call("run", str(image), "--timeline", str(as_page)).returncode == 0

    found = json.loads(as_json.read_text())
    assert (found["image"], found["end"]) == ("small.eif", "the enclave halted for good")
    assert found["moments"][-1]["name"] == "end"
    assert as_page.read_text().startswith("<!doctype html>")
    assert sorted(path.suffix for path in image.parent.glob("*boot*")) == [".html", ".json"]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("boot.txt", ExitCode.USAGE, "must end in .html or .json"),
        ("nowhere/boot.html", ExitCode.HOST, "nothing can be written to"),
        (".json", ExitCode.USAGE, "must end in"),
        ("directory.html", ExitCode.USAGE, "this is no file"),
    ],
)
def test_where_no_timeline_can_be_written_is_said_before_the_boot(
    image: Path, name: str, code: ExitCode, said: str
) -> None:
    image.with_name("directory.html").mkdir()

    done = call("run", str(image), "--timeline", str(image.parent / name))

    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


def test_json_logs_are_one_object_per_line(image: Path) -> None:
    done = call("run", "--console", str(image), "--log-format", "json")

    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(set(line) >= {"time", "level", "message"} for line in lines)
    assert lines[-1]["report"]["Reason"] == "the enclave halted for good"
    assert not any(line["message"].startswith("vmm:") for line in lines)
    assert done.stdout == "hi"


def test_errors_in_json_logs_have_code_and_hint(tmp_path: Path) -> None:
    done = call("run", str(tmp_path / "absent.eif"), "--log-format", "json")

    (error,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (error["level"], error["code"], error["exit_code"]) == ("error", "M19", 3)
    assert error["hint"] == "give the path of an EIF"


def test_what_others_log_is_json_as_well(image: Path) -> None:
    program = (
        "import logging, sys; from nitro_vmm.cli import main; from nitro_vmm.run import attach\n"
        "before = attach.attach\n"
        "attach.attach = lambda *a, **k: (logging.getLogger('x').warning('of %s', 'x'), before(*a, **k))[1]\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "run", str(image), "--log-format", "json"]

    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)

    (line,) = [found for line in done.stderr.splitlines() if (found := json.loads(line)).get("logger") == "x"]
    assert (line["level"], line["message"]) == ("warning", "of x")
