"""What benchmarks have found, as rows, tables and a picture."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import figures
from figures import FiguresError, Row, Sheet, amount, paired

LAUNCH = paired("launch", "s", [1.0, 3.0, 2.0], [2.0, 4.0, 1.0], peer="QEMU", cpu_s=([0.5], [1.5]))
RATE = paired("round trips", "/s", [3000.0], [2000.0], peer="QEMU", less_is_better=False)
ALONE = paired("documents", "/s", [500.0], peer="QEMU", less_is_better=False)


def test_a_row_has_medians_and_the_median_of_each_pairs_ratio() -> None:
    assert (LAUNCH.ours, LAUNCH.lowest, LAUNCH.highest, LAUNCH.runs) == (2.0, 1.0, 3.0, 3)
    assert LAUNCH.theirs == 2.0
    assert LAUNCH.ratio == 0.75
    assert (LAUNCH.ours_cpu_s, LAUNCH.theirs_cpu_s) == (0.5, 1.5)


def test_runs_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired("launch", "s", [1.0, 2.0], [1.0], peer="QEMU")


def test_a_peer_that_did_not_run_is_not_named() -> None:
    assert (ALONE.peer, ALONE.theirs, ALONE.ratio, ALONE.ahead) == ("", None, None, None)


@pytest.mark.parametrize(
    ("ours", "less_is_better", "ahead"),
    [(1.0, True, True), (3.0, True, False), (1.0, False, False), (3.0, False, True), (2.0, False, True)],
)
def test_less_or_more_is_better(ours: float, *, less_is_better: bool, ahead: bool) -> None:
    row = paired("what", "s", [ours], [2.0], peer="QEMU", less_is_better=less_is_better)

    assert row.ahead is ahead


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12.34, "s", "12.3 s"),
        (0.25, "s", "250 ms"),
        (4.2e-6, "s", "4.20 µs"),
        (0.0, "s", "0 s"),
        (3.5e9, "B/s", "3.50 GB/s"),
        (900.0, "/s", "900 /s"),
        (127.0, "MiB", "127 MiB"),
        (float("inf"), "s", "inf s"),
        (None, "s", "-"),
    ],
)
def test_amounts_have_three_digits_and_a_unit(value: float | None, unit: str, text: str) -> None:
    assert amount(value, unit) == text


@pytest.mark.parametrize("rows", [[LAUNCH, RATE, ALONE], []])
def test_what_a_benchmark_prints_can_be_read(rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    figures.report(rows, ["no QEMU"], as_json=True)
    read = figures.sheet(json.loads(capsys.readouterr().out), "launch")

    assert read == Sheet("launch", rows, {}, ["no QEMU"])


def test_what_was_not_measured_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    figures.report([LAUNCH], ["QEMU: there is no such program"], as_json=False)

    assert "not measured: QEMU: there is no such program" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[]", "{}", '{"rows": [{"name": "x"}]}', '{"rows": [7]}', "no JSON"])
def test_a_file_of_something_else_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "launch.json").write_text(text)

    with pytest.raises(FiguresError, match="launch"):
        figures.read(tmp_path)


def test_a_table_of_markdown_has_every_row_and_its_verdict() -> None:
    sheet = Sheet("launch", [LAUNCH, RATE, ALONE], {"date": "2026-01-31"}, ["no KVM"])

    lines = figures.markdown([sheet]).splitlines()

    assert lines[0] == "**launch** (2026-01-31)"
    assert lines[4].startswith("| launch | 2.00 s | 1.00 s to 3.00 s | 2.00 s, QEMU | 0.75 | ahead | 500 ms")
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert lines[-1] == "Not measured: no KVM"


def bars(picture: str) -> dict[str, tuple[float, float]]:
    """From where to where each bar reaches, by the row's ratio as it is told behind it."""
    parts = list(ET.fromstring(picture))  # noqa: S314 - it is our own
    return {
        parts[index + 1].text or "": (float(part.attrib["x"]), float(part.attrib["width"]))
        for index, part in enumerate(parts)
        if part.tag.endswith("rect")
    }


def test_a_picture_has_a_bar_for_each_ratio_on_its_side_of_one() -> None:
    half = paired("a & <b>", "s", [1.0], [2.0], peer="QEMU")
    twice = paired("c", "s", [2.0], [1.0], peer="QEMU")

    found = bars(figures.svg([Sheet("launch", [half, twice, ALONE])]))

    assert list(found) == ["0.50", "2.00"]
    assert sum(found["0.50"]) == pytest.approx(found["2.00"][0], abs=0.1)
    assert found["0.50"][1] == found["2.00"][1]


@pytest.mark.parametrize("ours", [0.0, 1e-6, 1e6, float("inf")])
def test_a_bar_of_any_ratio_stays_in_the_picture(ours: float) -> None:
    row = paired("what", "s", [ours], [1.0], peer="QEMU")

    ((start, width),) = bars(figures.svg([Sheet("launch", [row])])).values()

    assert start >= figures.MIDDLE - figures.HALF
    assert start + width <= figures.MIDDLE + figures.HALF


def test_a_page_gets_new_figures_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n")

    figures.put_into(page, "new\n")

    assert page.read_text() == f"before\n{figures.BEGIN}\n\nnew\n\n{figures.END}\nafter\n"


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n")

    with pytest.raises(FiguresError, match="no lines"):
        figures.put_into(page, "new\n")

    assert page.read_text() == "before\n"


def test_a_picture_needs_nothing_from_elsewhere() -> None:
    picture = figures.svg([Sheet("launch", [LAUNCH, RATE], {"machine": "2 processors"})])

    assert "2 processors" in picture
    assert "href" not in picture
    assert "url(" not in picture
