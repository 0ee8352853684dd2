"""How the command line behaves, whatever the command: errors, hints, pipes, signals, help."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import nitro_eif
from nitro_eif import EifError, EifFormatError, HostError, SigningError, UsageError, write_eif
from nitro_eif.cli import exit_code, main, parser
from nitro_eif.commands import COMMANDS
from nitro_eif.image import cose
from nitro_eif.signing.keys import KeySigner
from nitro_eif.signing.sign import sign
from nitro_eif.testing import example_contents, example_key


def test_an_error_is_one_line_and_its_remedy_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "/dev/null"]) == 4

    error = "eif: error: /dev/null: not a regular file\n  hint: copy it to one first\n"
    assert capsys.readouterr().err == error


def test_a_pipe_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert main(["describe", str(tmp_path / "pipe")]) == 4

    assert "not a regular file" in capsys.readouterr().err


def test_an_error_without_remedy_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    assert main(["describe", str(tmp_path / "file" / "below")]) == 4

    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EifFormatError("x", offset=0), 3),
        (UsageError("x"), 2),
        (HostError("x"), 4),
        (SigningError("x"), 1),
        (EifError("x"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: EifError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["verify"], ["pcr", "--input"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"]])
def test_a_reader_that_leaves_is_no_error_message(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)

    done = subprocess.run(
        [sys.executable, "-m", "nitro_eif.cli", *arguments],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)

    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_is_130_and_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted:
        @staticmethod
        def run(_options: object) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return 0

    path = tmp_path / "x.eif"
    write_eif(example_contents(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nitro_eif.commands.describe.run", Interrupted.run)
        code = main(["describe", str(path)])

    assert code == 130
    assert capsys.readouterr().err == ""


def test_every_command_but_completion_has_json() -> None:
    whole = parser(whole=True)
    (commands,) = (action for action in whole._actions if isinstance(action.choices, dict))

    assert isinstance(commands.choices, dict)
    for name in COMMANDS:
        options = commands.choices[name]._option_string_actions
        assert ("--json" in options) is (name != "completion"), name


@pytest.mark.parametrize(
    "arguments", [["describe"], ["describe", "--json"], ["describe", "--findings"], ["verify", "--signed"]]
)
def test_a_signature_section_is_parsed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    path = tmp_path / "x.eif"
    write_eif(example_contents(), path)
    key, certificate = example_key()
    sign(path, KeySigner(key), certificate)
    decoded: list[bytes] = []
    decode = cose.decode

    def noting(data: bytes) -> object:
        decoded.append(data)
        return decode(data)

    monkeypatch.setattr(cose, "decode", noting)

    assert main([*arguments, str(path)]) == 0
    assert sum(b"signing_certificate" in data for data in decoded) == 1


def test_every_public_name_is_where_the_package_says() -> None:
    assert sorted(nitro_eif.__all__) == sorted(set(nitro_eif.__all__))
    for name in nitro_eif.__all__:
        assert getattr(nitro_eif, name) is not None
    assert set(nitro_eif._MODULES) <= set(nitro_eif.__all__)
