"""What people see while they wait, and which options must be there together."""

import io
from pathlib import Path

import pytest

from nitro_eif.cli import main
from nitro_eif.commands.terminal import Meter, print_json, size, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *times_s: float) -> str:
    """What a meter shows that is called at these times after its start."""
    now = iter([0.0, *times_s])
    monkeypatch.setattr("nitro_eif.commands.terminal.time.monotonic", lambda: next(now))
    with Meter("Measuring", stream) as meter:
        for count, _ in enumerate(times_s, 1):
            meter(count << 20, 8 << 20)
    return stream.getvalue()


def test_a_meter_waits_a_second_and_then_shows_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), monkeypatch, 0.5, 0.99, 1.01, 1.05, 1.2)

    assert text.count("\r\033[K") == 3
    assert "Measuring  37 % of 8.0 MiB" in text
    assert "Measuring  62 % of 8.0 MiB" in text
    assert text.endswith("\r\033[K")


def test_a_meter_shows_nothing_for_short_work_or_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(Terminal(), monkeypatch, 0.2, 0.9) == ""
    assert shown(io.StringIO(), monkeypatch, 2.0, 3.0) == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (9_999, "9999 B"),
        (10_000, "9.8 KiB"),
        ((1000 << 10) - 1, "1000.0 KiB"),
        (1000 << 10, "1.0 MiB"),
        ((1000 << 20) - 1, "1000.0 MiB"),
        (1000 << 20, "1.0 GiB"),
        (1 << 50, "1048576.0 GiB"),
    ],
)
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_rows_are_laid_out_in_columns() -> None:
    assert table([("a", "one", ""), ("bcd", "x", "last")]) == "  a    one\n  bcd  x    last"
    assert table([]) == ""


def test_json_is_laid_out_as_nitro_cli_does_and_steers_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json({"Name": "\x9b\u202eä", "Measurements": {"PCR0": "00"}})

    assert capsys.readouterr().out == (
        '{\n  "Name": "\\u009b\\u202eä",\n  "Measurements": {\n    "PCR0": "00"\n  }\n}\n'
    )


@pytest.mark.parametrize(
    "given",
    [
        ["--kernel", "k", "--cmdline", "c"],
        ["--kernel", "k", "--ramdisk", "r"],
        ["--cmdline", "c", "--ramdisk", "r"],
        ["--image", "i", "--rootfs", "r", "--kernel", "k"],
        ["--rootfs", "r", "--ramdisk", "r", "--kernel", "k"],
        ["--rootfs", "r"],
        ["--rootfs", "r", "--kernel", "k", "--blobs", "b"],
        ["--kernel", "k", "--cmdline", "c", "--ramdisk", "r", "--user", "u"],
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("k", "r"):
        (tmp_path / name).write_bytes(bytes(0x202) + b"HdrS")

    assert main(["build", *given, "--output", "x.eif"]) == 2
