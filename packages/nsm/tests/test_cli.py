"""The command line: answers on standard output, stories on standard error, exit codes as documented."""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from nitro_nsm import ensure_test_root, parse_document, verify
from nitro_nsm.cli import main
from nitro_nsm.pki.authority import Root
from vectors import expectations

PCR0 = "07" * 48
ROLE = "arn:aws:iam::123456789012:role/r"
COMMANDS = ("verify", "describe", "attest", "pki", "serve", "completion")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory of our own, so that no test touches the user's root."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data" / "nitro-nsm"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "document.cose"
    assert main(["attest", "--pcr", f"0={PCR0}", "--nonce", "00ff", "--output", str(path)]) == 0
    return path


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    printed = capsys.readouterr().out
    found: dict[str, Any] = json.loads(printed)
    assert printed == json.dumps(found, indent=2) + "\n"
    return found


def test_a_document_is_made_and_verified(document: Path, home: Path) -> None:
    assert main(["verify", "--root", "test", "--pcr", f"PCR0={PCR0}", "--nonce", "00ff", str(document)]) == 0
    assert list(home.iterdir()) == [home / "test-root.pem"]


def test_a_document_of_the_test_root_is_not_taken_for_awss(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(document)]) == 1

    said = capsys.readouterr()
    assert said.out.startswith("REFUSED  certificates: the root is not aws")
    assert "--root test" in said.err


def test_verdicts_as_data(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json", "--root", "test", str(document)]) == 0
    good = answer(capsys)
    assert (good["verified"], good["root"]) == (True, "test")
    assert good["document"]["pcrs"]["0"] == PCR0
    assert len(good["document"]["certificates"]) == 5

    assert main(["verify", "--json", "--root", "test", "--nonce", "01", str(document)]) == 1
    bad = answer(capsys)
    assert bad == {
        "verified": False,
        "root": "test",
        "step": "nonce",
        "error": "nonce: it is 00ff and must be 01",
    }


@pytest.mark.parametrize("entry", expectations("attestation"), ids=lambda entry: str(entry["file"]))
def test_real_documents(vectors: Path, entry: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(vectors / "attestation" / entry["file"])

    assert main(["verify", "--at", "issued", path]) == 0
    assert main(["verify", "--at", entry["time"], path]) == 0
    assert main(["verify", "--at", str(entry["timestamp"] // 1000), path]) == 0
    assert main(["verify", "--at", str(entry["timestamp"]), path]) == 0
    capsys.readouterr()
    assert main(["verify", path]) == 1
    assert "--at issued" in capsys.readouterr().err
    assert main(["describe", "--json", path]) == 0
    described = answer(capsys)
    assert described["module_id"] == entry["module_id"]
    assert described["certificates"][-1]["subject"] == entry["leaf_subject"]


@pytest.mark.parametrize("entry", expectations("attestation/negative"), ids=lambda entry: str(entry["file"]))
def test_real_documents_that_were_changed(vectors: Path, entry: dict[str, Any]) -> None:
    path = str(vectors / "attestation" / "negative" / entry["file"])

    assert main(["verify", "--at", "2022-10-13T08:58:02Z", path]) == (
        0 if entry["file"].startswith("pos") else 1
    )
    assert main(["verify", "--at", "issued", path]) == (0 if entry["file"].startswith("pos") else 1)


@pytest.mark.parametrize(
    "encode",
    [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes, lambda data: data.hex().encode()],
)
def test_documents_in_texts(document: Path, tmp_path: Path, encode: Callable[[bytes], bytes]) -> None:
    text = tmp_path / "document.txt"
    text.write_bytes(encode(document.read_bytes()).rstrip(b"="))

    assert main(["verify", "--root", "test", str(text)]) == 0


@pytest.mark.parametrize("wrapped", [True, False])
def test_measurements_come_from_the_description_of_an_image(
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    wrapped: bool,  # noqa: FBT001
) -> None:
    measurements = {"HashAlgorithm": "Sha384 { ... }"} | {
        f"PCR{index}": f"{index:096x}" for index in (0, 1, 2, 8)
    }
    path = tmp_path / "image.json"
    path.write_text(json.dumps({"Measurements": measurements, "EifVersion": 4} if wrapped else measurements))

    assert (
        main(
            [
                "attest",
                "--measurements",
                str(path),
                "--base64",
                "--role-arn",
                "arn:aws:iam::123456789012:role/r",
            ]
        )
        == 0
    )

    out = base64.b64decode(capsysbinary.readouterr().out)
    (tmp_path / "document").write_bytes(out)
    assert {index: parse_document(out).pcrs[index] for index in (0, 1, 2, 8)} == {
        index: index.to_bytes(48, "big") for index in (0, 1, 2, 8)
    }
    assert main(["verify", "--root", "test", "--measurements", str(path), str(tmp_path / "document")]) == 0


def test_an_enclave_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"region": "eu-central-1", "instance_id": "i-0123456789abcdef0", "pcrs": {"0": PCR0}}
    toml, as_json = tmp_path / "enclave.toml", tmp_path / "enclave.json"
    toml.write_text(f'region = "eu-central-1"\ninstance_id = "i-0123456789abcdef0"\n[pcrs]\n0 = "{PCR0}"\n')
    as_json.write_text(json.dumps(fields))

    for path in (toml, as_json):
        assert main(["attest", "--config", str(path), "--instance-id", "i-0000aaaa", "--json"]) == 0
        said = answer(capsys)["document"]
        assert said["pcrs"]["0"] == PCR0
        assert said["module_id"].startswith("i-0000aaaa-enc")
        assert ".eu-central-1.aws" in said["certificates"][-1]["subject"]


def test_an_own_root(tmp_path: Path, root: Root, home: Path) -> None:
    (tmp_path / "root.pem").write_bytes(root.pem())

    assert main(["attest", "--root-key", "root.pem", "--output", "document"]) == 0
    assert main(["verify", "--root", "root.pem", "document"]) == 0
    assert not home.exists()


def test_no_bytes_are_thrown_at_a_terminal(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    assert main(["attest"]) == 2
    assert "--base64" in capsys.readouterr().err
    assert not home.exists()
    assert main(["attest", "--base64"]) == 0
    assert base64.b64decode(capsys.readouterr().out).startswith(b"\x84\x44\xa1\x01\x38\x22\xa0")


def test_pki(home: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["pki", "export"]) == 0
    pem = capsysbinary.readouterr().out
    assert pem.startswith(b"-----BEGIN CERTIFICATE")
    assert b"KEY" not in pem
    assert main(["pki", "export", "--der"]) == 0
    assert capsysbinary.readouterr().out == ensure_test_root().der

    assert main(["pki", "show"]) == 0
    assert ensure_test_root().trust.fingerprint.encode() in capsysbinary.readouterr().out
    assert main(["pki", "export", "--json"]) == 0
    assert capsysbinary.readouterr().out == json.dumps({"pem": pem.decode()}, indent=2).encode() + b"\n"
    assert main(["pki", "show", "--json"]) == 0
    before = json.loads(capsysbinary.readouterr().out)
    assert before["sha256"] == ensure_test_root().trust.fingerprint
    assert before["path"] == str(home / "test-root.pem")
    assert main(["pki", "rotate", "--json"]) == 0
    assert (
        json.loads(capsysbinary.readouterr().out)["sha256"]
        == ensure_test_root().trust.fingerprint
        != before["sha256"]
    )


def test_a_fresh_machine_gets_a_root_and_an_explanation(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pki", "show"]) == 0
    first = capsys.readouterr().out
    assert main(["pki", "show", "--json"]) == 0
    second = answer(capsys)

    assert f"path    {home}/test-root.pem (made just now)" in first
    assert "--root test" in first
    assert second["sha256"] in first
    assert second["made"] is False


def test_a_home_that_cannot_be_written_gets_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))

    assert main(["pki", "show"]) == 4
    assert "hint: set XDG_DATA_HOME" in capsys.readouterr().err


def test_the_exported_certificate_is_a_root(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pki", "export"])
    Path("root.pem").write_text(capsys.readouterr().out)

    assert main(["verify", "--root", "root.pem", str(document)]) == 0


def test_what_is_shown_cannot_steer_a_terminal(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module_id = parse_document(document.read_bytes()).module_id.encode()
    document.write_bytes(document.read_bytes().replace(module_id, b"\x1b[2J".ljust(len(module_id), b"x"), 1))

    assert main(["describe", str(document)]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["verify", "missing"], 4, "missing cannot be read: No such file"),
        (["verify", "--root", "test", "empty"], 3, "no test root yet"),
        (["verify", "--root", "empty", "empty"], 3, "neither DER nor PEM"),
        (["verify", "--at", "noon", "empty"], 2, "--at 'noon' is not a time"),
        (["verify", "--at", "9" * 15, "empty"], 2, "is not a time"),
        (["verify", "--max-age", "nan", "empty"], 2, "max_age_s: Input should be"),
        (["verify", "--pcr", "0=00", "empty"], 2, "is not a register and its value"),
        (["verify", "--pcr", f"32={PCR0}", "empty"], 2, "is not a register and its value"),
        (["verify", "--nonce", "xyz", "empty"], 2, "--nonce 'xyz' is not hexadecimal"),
        (["verify", "--nonce", "@missing", "empty"], 4, "cannot be read"),
        (["verify", "--measurements", "empty", "empty"], 3, "empty is not JSON"),
        (["verify", "--measurements", "object", "empty"], 3, "no measurements"),
        (["describe", "empty"], 3, "not a COSE_Sign1"),
        (["describe", "large"], 3, "longer than anything"),
        (["attest", "--output", "missing/document"], 4, "cannot be written"),
        (["attest", "--pcr", f"16={PCR0}", "--base64"], 2, "pcrs.16"),
        (["attest", "--region", "XX", "--base64"], 2, "region"),
        (["attest", "--role-arn", ROLE, "--pcr", f"3={PCR0}", "--base64"], 2, "both give PCR3"),
        (["attest", "--nonce", "@large-nonce", "--base64"], 2, "InputTooLarge"),
        (["attest", "--root-key", "empty", "--base64"], 3, "empty is not a root"),
        (["attest", "--config", "large-nonce", "--base64"], 3, "large-nonce is not TOML"),
        (["attest", "--signing-certificate", "empty", "--base64"], 2, "the signing certificate is neither"),
        (["pki", "show", "--der"], 2, "--der is for export"),
        (["serve", "--socket", "missing/nsm.sock"], 4, "cannot listen on missing/nsm.sock"),
        (["serve", "--socket", "x" * 200], 4, "cannot listen"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_mistakes(arguments: list[str], code: int, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").touch()
    Path("object").write_text("{}")
    Path("large").write_bytes(bytes((1 << 20) + 1))
    Path("large-nonce").write_bytes(bytes(4096))

    assert main(arguments) == code
    said = capsys.readouterr()
    assert why in said.err
    first, *hints = said.err.splitlines()
    assert first.startswith("nsm: error: ")
    assert all(line.startswith("  hint: ") for line in hints)
    assert len(hints) <= 1


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)], ids=" ".join)
def test_help_has_an_example_and_exit_codes(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])

    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "example:\n  nsm" in said or "| nsm" in said
    assert "exit codes:" in said


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from nitro_nsm.cli import parser; parser().format_help(); "
        "print(sorted({'cryptography', 'pydantic', 'asyncio', 'cbor2'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    pytest.importorskip("shtab", reason="the extra `completion` is not installed")

    assert main(["completion", shell]) == 0
    assert "verify" in capsys.readouterr().out


def test_completion_says_what_it_lacks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)

    assert main(["completion", "bash"]) == 4
    assert "nitro-nsm[completion]" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_traceback(document: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    finished = subprocess.run(
        [sys.executable, "-m", "nitro_nsm.cli", "describe", "--json", str(document)],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)

    assert finished.returncode == 1
    assert finished.stderr == b""


def run(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "nitro_nsm.cli", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=False)


def test_standard_input_and_output() -> None:
    made = run("attest", "--user-data", "@-", data=b"said")

    assert made.returncode == 0
    verified = verify(made.stdout, at=datetime.now(UTC), root=ensure_test_root().trust)
    assert verified.user_data == b"said"
    assert run("verify", "--root", "test", "-", data=made.stdout).returncode == 0


def test_ctrl_c_ends_a_command_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "nitro_nsm.cli", "describe", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    # A pipe's buffer is smaller than this, so when it has been written, the command reads.
    assert process.stdin is not None
    process.stdin.write(bytes(1 << 19))
    process.stdin.flush()

    process.send_signal(signal.SIGINT)
    said = process.communicate()

    assert (process.returncode, *said) == (130, b"", b"")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"nsm {version('nitro-nsm')}\n"


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["verify"], ["verify", "--unknown", "file"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "nsm" in capsys.readouterr().err


@pytest.mark.parametrize("written", [f"PCR0={PCR0}", f"pcr0=0x{PCR0}", f"0={PCR0.upper()}", f"0=0X{PCR0}"])
def test_registers_may_be_written_as_others_write_them(document: Path, written: str) -> None:
    assert main(["verify", "--root", "test", "--pcr", written, str(document)]) == 0


def test_missing_and_empty_contents_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attest", "--nonce", "", "--user-data", "00ff", "--output", "document"]) == 0
    assert main(["describe", "document"]) == 0

    said = capsys.readouterr().out
    assert "public_key  none\n" in said
    assert "user_data   00ff\n" in said
    assert "nonce       empty\n" in said
