"""nitro-cli: flags, JSON with its keys in order, messages, and error codes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nitro_vmm.cli.nitro import enclaves
from nitro_vmm.cli.nitro.errors import ERRORS
from nitro_vmm.cli.nitro.main import VERSION, allocator, main, parser
from vmm_command import Vmm

CODE = "import sys; from nitro_vmm.cli.nitro.main import main; sys.exit(main())"
IDENTITY = [
    *("EnclaveName", "EnclaveID", "ProcessID", "EnclaveCID"),
    *("NumberOfCPUs", "CPUIDs", "MemoryMiB"),
]


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", CODE, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done


def launch(vmm: Vmm, image: Path, *options: str) -> None:
    """An enclave without a heartbeat, which run-enclave would wait for."""
    assert vmm("run", "-d", image, *options).returncode == 0


def test_describe_enclaves(vmm: Vmm, spinning_image: Path) -> None:
    none = call("describe-enclaves")
    launch(vmm, spinning_image, "--debug-mode", "--accel", "unicorn")

    (described,) = json.loads(call("describe-enclaves").stdout)
    (with_metadata,) = json.loads(call("describe-enclaves", "--metadata").stdout)

    assert none.stdout == "[]\n"
    assert list(described) == [*IDENTITY, "State", "Flags", "Measurements"]
    assert (described["NumberOfCPUs"], described["CPUIDs"]) == (1, [1])
    assert (described["State"], described["Flags"]) == ("RUNNING", "DEBUG_MODE")
    assert list(described["Measurements"]) == ["HashAlgorithm", "PCR0", "PCR1", "PCR2"]
    assert described["EnclaveID"].startswith("i-")
    assert list(with_metadata)[len(described) :] == ["ImageName", "ImageVersion", "Metadata"]


def test_terminate_enclave(vmm: Vmm, spinning_image: Path) -> None:
    launch(vmm, spinning_image)
    (described,) = json.loads(call("describe-enclaves").stdout)

    done = call("terminate-enclave", "--enclave-id", described["EnclaveID"])

    assert json.loads(done.stdout) == {
        "EnclaveName": "spinning",
        "EnclaveID": described["EnclaveID"],
        "Terminated": True,
    }
    assert done.stderr == f"Successfully terminated enclave {described['EnclaveID']}.\n"
    assert call("terminate-enclave", "--all").stdout == "[]\n"


def test_console(vmm: Vmm, spinning_image: Path) -> None:
    launch(vmm, spinning_image, "--debug-mode", "--name", "debug")
    launch(vmm, spinning_image, "--name", "production")

    shown = call("console", "--enclave-name", "debug", "--disconnect-timeout", "1")
    refused = call("console", "--enclave-name", "production")

    assert (shown.returncode, shown.stdout) == (0, "hi")
    assert shown.stderr == (
        "Connecting to the console for enclave 16...\nSuccessfully connected to the console.\n"
    )
    assert (refused.returncode, refused.stdout) == (44, "")
    assert "[ E44 ] Enclave console connection failure." in refused.stderr


def test_an_enclave_that_does_not_boot(vmm: Vmm, image: Path) -> None:
    done = call("run-enclave", "--cpu-count", "2", "--memory", "64", "--eif-path", image)

    assert (done.returncode, done.stdout) == (36, "")
    assert done.stderr.startswith("Start allocating memory...\n[ E36 ] Enclave boot failure.")
    assert "the enclave halted for good" in done.stderr
    assert "cli-errors.html#E36" in done.stderr


RUN = ["run-enclave", "--eif-path", "IMAGE", "--cpu-count", "2", "--memory"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run-enclave", "--cpu-count", "2", "--memory", "64"], "E01"),
        (["run-enclave", "--cpu-count", "2", "--eif-path", "IMAGE"], "E01"),
        (["run-enclave", "--memory", "64", "--eif-path", "IMAGE"], "E01"),
        ([*RUN, "64", "--cpu-ids", "1"], "E02"),
        ([*RUN, "64", "--config", "x.json"], "E02"),
        ([*RUN, "much"], "E03"),
        ([*RUN, "64", "--enclave-cid", "3"], "E03"),
        ([*RUN, "64", "--enclave-cid", "4294967295"], "E03"),
        ([*RUN, "64", "--enclave-cid", "x"], "E03"),
        ([*RUN, "0"], "E26"),
        ([*RUN, "63"], "E26"),
        (["run-enclave", "--eif-path", "IMAGE", "--memory", "64", "--cpu-ids", "1", "1"], "E20"),
        (["run-enclave", "--eif-path", "IMAGE", "--memory", "64", "--cpu-ids", "0"], "E21"),
        (["run-enclave", "--eif-path", "IMAGE", "--memory", "64", "--cpu-count", "65"], "E22"),
        (["run-enclave", "--eif-path", "/absent", "--memory", "64", "--cpu-count", "2"], "E19"),
        (["run-enclave", "--eif-path", __file__, "--memory", "64", "--cpu-count", "2"], "E35"),
        (["run-enclave", "--config", "/absent.json"], "E19"),
        (["run-enclave", "--config", __file__], "E17"),
        (["terminate-enclave", "--enclave-id", "i-1-enc2"], "E40"),
        (["terminate-enclave", "--enclave-name", "nobody"], "E58"),
        (["console", "--enclave-name", "nobody"], "E58"),
        (["describe-eif", "--eif-path", "/absent"], "E19"),
        (["describe-eif", "--eif-path", __file__], "E35"),
        (["pcr", "--input", "/absent"], "E19"),
        (["sign-eif", "--eif-path", "IMAGE", "--signing-certificate", "/a", "--private-key", "/b"], "E60"),
        (["build-enclave", "--docker-uri", "a", "--docker-dir", ".", "--output-file", "o"], "E49"),
        (["explain", "--error-code", "E99"], "E03"),
    ],
)
def test_errors_by_code(vmm: Vmm, image: Path, arguments: list[str], code: str) -> None:
    done = call(*[str(image) if argument == "IMAGE" else argument for argument in arguments])

    assert done.returncode == int(code[1:])
    assert f"[ {code} ] {ERRORS[code][0]}." in done.stderr
    assert done.stdout == ""


def test_no_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NITRO_CLI_BLOBS", str(tmp_path / "absent"))

    assert call("build-enclave", "--docker-uri", "a", "--output-file", "o").returncode == 52


def test_a_configuration_file(vmm: Vmm, image: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"eif_path": str(image), "memory_mib": 63, "cpu_count": 2}))
    unknown = tmp_path / "unknown.json"
    unknown.write_text('{"memory": 63}')

    assert call("run-enclave", "--config", config).returncode == 26
    assert "unknown field `memory`" in call("run-enclave", "--config", unknown).stderr


def test_describe_eif_and_pcr(image: Path) -> None:
    printed = call("describe-eif", "--eif-path", image).stdout
    described = json.loads(printed)
    measured = json.loads(call("pcr", "--input", image).stdout)

    assert list(described) == [
        *("EifVersion", "Measurements", "IsSigned", "CheckCRC"),
        *("ImageName", "ImageVersion", "Metadata"),
    ]
    assert described["Measurements"]["HashAlgorithm"] == "Sha384 { ... }"
    assert list(measured) == ["PCR"]
    assert printed == json.dumps(described, indent=2) + "\n", "laid out as nitro-cli does"


@pytest.mark.parametrize("code", ERRORS)
def test_every_code_is_explained(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--error-code", code]) == 0
    assert capsys.readouterr().out.startswith(f"[ {code} ] ")


def test_the_codes_are_those_of_nitro_cli() -> None:
    assert list(ERRORS) == [f"E{number:02}" for number in range(61)]


def test_the_version_that_scripts_look_at(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--version"])

    assert capsys.readouterr().out == f"Nitro CLI {VERSION}\n"


def test_the_allocator_has_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert allocator() == 0
    assert "nothing is set aside" in capsys.readouterr().err


def test_it_is_a_command_of_vmm_as_well(vmm: Vmm) -> None:
    done = vmm("nitro-cli", "describe-enclaves")

    assert (done.returncode, done.stdout) == (0, "[]\n")


GIB = 1 << 30
Ask = Callable[..., list[str]]
"""Asks run-enclave for something; returns the command line of ``vmm`` that it would launch."""


@pytest.fixture
def ask(vmm: Vmm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Nothing is launched, so that enclaves may be as large as they like."""
    launched: list[list[str]] = []

    def refuse(argv: list[str]) -> tuple[int, None, str]:
        launched.append(argv)
        return 4, None, "vmm: error: nothing is launched here"

    monkeypatch.setattr(enclaves, "start", refuse)

    def ask(*arguments: str, image_bytes: int = 1) -> list[str]:
        with (tmp_path / "image").open("wb") as image:
            image.truncate(image_bytes)
        code = main(["run-enclave", "--eif-path", str(tmp_path / "image"), *arguments])
        return launched[-1] if code == 29 else [f"E{code:02}"]

    return ask


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1] if name in argv else " ".join(argv)


@pytest.mark.parametrize(
    ("image_bytes", "memory", "memory_mib"),
    [
        (1, "64", "64"),
        (16 << 20, "64", "64"),
        ((16 << 20) + 1, "64", "E26"),
        ((16 << 20) + 1, "65", "65"),
        (GIB, "4096M", "4096"),
        (GIB, "4G", "4096"),
        (GIB, "4095", "E26"),
        (1, "1T", str(1 << 20)),
        (1, "1K", "E03"),
    ],
)
def test_memory_is_at_least_four_times_the_image(
    ask: Ask, image_bytes: int, memory: str, memory_mib: str
) -> None:
    argv = ask("--memory", memory, "--cpu-count", "2", image_bytes=image_bytes)

    assert option(argv, "--memory-mib") == memory_mib


@pytest.mark.parametrize(
    ("image_bytes", "memory", "timeout_s"),
    [(1, "64", 180), (6 * GIB - 1, "99G", 180), (6 * GIB, "99G", 270), (1, "100G", 270), (1, "200G", 360)],
)
def test_how_long_an_enclave_may_take_to_boot(
    ask: Ask, image_bytes: int, memory: str, timeout_s: int
) -> None:
    argv = ask("--memory", memory, "--cpu-count", "2", image_bytes=image_bytes)

    assert option(argv, "--boot-timeout-s") == str(timeout_s)


@pytest.mark.parametrize(
    ("arguments", "processors"),
    [
        (["--cpu-count", "1"], "1"),
        (["--cpu-count", "64"], "64"),
        (["--cpu-count", "0"], "E22"),
        (["--cpu-count", "-1"], "E22"),
        (["--cpu-ids", "1"], "1"),
        (["--cpu-ids", "1", "1023"], "2"),
        (["--cpu-ids", "1024"], "E21"),
        (["--cpu-ids", *map(str, range(1, 65))], "64"),
        (["--cpu-ids", *map(str, range(1, 66))], "E22"),
    ],
)
def test_how_many_processors(ask: Ask, arguments: list[str], processors: str) -> None:
    assert option(ask("--memory", "64", *arguments), "--processors") == processors


@pytest.mark.parametrize(
    ("cid", "given"),
    [
        ("0", "0"),
        ("1", "E03"),
        ("2", "E03"),
        ("4", "4"),
        ("4294967294", "4294967294"),
        ("4294967296", "E03"),
        ("-1", "E03"),
    ],
)
def test_which_cids(ask: Ask, cid: str, given: str) -> None:
    assert option(ask("--memory", "64", "--cpu-count", "2", f"--enclave-cid={cid}"), "--cid") == given


@pytest.mark.parametrize(
    ("arguments", "shows", "debugs"),
    [
        ([], "--no-console", False),
        (["--debug-mode"], "--console", True),
        (["--attach-console"], "--console", True),
    ],
)
def test_when_the_console_is_shown(ask: Ask, arguments: list[str], shows: str, debugs: bool) -> None:  # noqa: FBT001
    argv = ask("--memory", "64", "--cpu-count", "2", *arguments)

    assert shows in argv
    assert ("--debug-mode" in argv) is debugs


def test_a_configuration_file_says_what_the_options_say(ask: Ask, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    wanted = {"memory_mib": 64, "cpu_ids": [1, 3], "enclave_cid": 18, "eif_path": str(tmp_path / "image")}
    by_options = ask("--memory", "64", "--cpu-ids", "1", "3", "--enclave-cid", "18")
    config.write_text(json.dumps(wanted))

    assert main(["run-enclave", "--config", str(config)]) == 29
    assert ask("--memory", "64", "--cpu-ids", "1", "3", "--enclave-cid", "18") == by_options


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"cpu_count": 2, "cpu_ids": []}, 29),
        ({"cpu_count": 2, "memory_mib": True}, 3),
        ({"cpu_count": 2, "cpu_ids": [1]}, 2),
        ({"cpu_ids": []}, 1),
        ({"cpu_ids": 1}, 29),
        ({"cpu_count": "many"}, 3),
        ([], 17),
    ],
)
def test_what_a_configuration_file_may_say(ask: Ask, tmp_path: Path, wanted: object, code: int) -> None:
    config = tmp_path / "config.json"
    ask("--memory", "64", "--cpu-count", "2")  # makes the image
    common = {"eif_path": str(tmp_path / "image"), "memory_mib": 64}
    config.write_text(json.dumps(common | wanted if isinstance(wanted, dict) else wanted))

    assert main(["run-enclave", "--config", str(config)]) == code


def test_a_configuration_file_that_is_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"eif_path": "x" * (1 << 20)}))

    assert main(["run-enclave", "--config", str(config)]) == 17
