"""What benchmarks have found, as tables or a picture: ``python tools/figures.py --markdown .cache/bench``.

Every benchmark says with ``--json`` what it has found: a list of rows, each a figure of ours beside that of
a peer which did the same work in the same run. `Row` is the shape. ``tools/bench.py`` runs a benchmark and
keeps its `Sheet` in ``.cache/bench``. Nothing here measures.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

NARROW_UNITS = {"s": ((1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))}
WIDE_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
NO_FIGURE = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of ours, and a peer's if there is one."""

    name: str
    """What was done."""
    unit: str
    """Of all but the ratio and processor time: ``s``, ``MiB``, ``/s`` ..."""
    ours: float
    """The median of all runs."""
    lowest: float
    highest: float
    """Ours in the runs that were furthest from it."""
    runs: int
    """How many."""
    less_is_better: bool = True
    """Whether a small figure is a good one, as of seconds; of rates it is not."""
    peer: str = ""
    """Who did the same; empty if nobody did."""
    theirs: float | None = None
    """The median of the peer's runs."""
    ratio: float | None = None
    """Ours to the peer's: the median of the ratios of runs that came one after the other."""
    ours_cpu_s: float | None = None
    """Seconds of the processor that one of it took: one launch, one connection, one MiB. Median."""
    theirs_cpu_s: float | None = None
    """The peer's."""

    @property
    def ahead(self) -> bool | None:
        """Whether ours is the better figure; `None` if there is no peer."""
        return None if self.ratio is None else (self.ratio <= 1) == self.less_is_better or self.ratio == 1


@dataclass(frozen=True, slots=True)
class Sheet:
    """All that one benchmark found."""

    name: str
    """The benchmark's, as in ``nox -s 'bench(NAME)'``."""
    rows: list[Row]
    on: dict[str, str] = field(default_factory=dict)
    """When and where: machine, kernel and versions."""
    skipped: list[str] = field(default_factory=list)
    """What was not measured, and why."""


class FiguresError(ValueError):
    """A file is no sheet of figures; the message says which and why."""


def paired(
    name: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float] = (),
    *,
    peer: str = "",
    less_is_better: bool = True,
    cpu_s: tuple[Sequence[float], Sequence[float]] = ((), ()),
) -> Row:
    """A row, from all runs.

    Args:
        name: What was done.
        unit: Of the figures.
        ours: One figure for each run, at least one.
        theirs: The peer's, in the same order; none if there was no peer.
        peer: Its name.
        less_is_better: See `Row`.
        cpu_s: Processor time of ours and of the peer's, where it was measured.
    """
    pairs = list(zip(ours, theirs, strict=True)) if theirs else []
    return Row(
        name,
        unit,
        median(ours),
        min(ours),
        max(ours),
        len(ours),
        less_is_better=less_is_better,
        peer=peer if theirs else "",
        theirs=median(theirs) if theirs else None,
        ratio=median(one / two for one, two in pairs) if pairs and all(theirs) else None,
        ours_cpu_s=median(cpu_s[0]) if cpu_s[0] else None,
        theirs_cpu_s=median(cpu_s[1]) if cpu_s[1] else None,
    )


def report(rows: Sequence[Row], skipped: Sequence[str] = (), *, as_json: bool) -> None:
    """Print what a benchmark has found: for people, or as `sheet` reads it."""
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "skipped": list(skipped)}, indent=2))
        return
    print(table(rows))
    for reason in skipped:
        print(f"not measured: {reason}")


def sheet(data: dict[str, Any], name: str) -> Sheet:
    """Read what a benchmark printed, or what was kept of it.

    Raises:
        FiguresError: It is something else.
    """
    try:
        rows = [Row(**row) for row in data["rows"]]
        return Sheet(name, rows, dict(data.get("on", {})), list(data.get("skipped", [])))
    except (KeyError, TypeError) as error:
        raise FiguresError(f"{name}: these are no figures of a benchmark: {error}") from error


def read(directory: Path) -> list[Sheet]:
    """All sheets that are kept in a directory, by name.

    Raises:
        FiguresError: One of the files is something else.
        OSError: One cannot be read.
    """
    sheets = []
    for path in sorted(directory.glob("*.json")):
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise FiguresError(f"{path}: this is no JSON: {error}") from error
        sheets.append(sheet(data, path.stem.replace("-", " ")))
    return sheets


def amount(value: float | None, unit: str = "s") -> str:
    """A figure with three digits and its unit, such as ``1.25 s``, ``740 µs`` or ``3.42 GB/s``."""
    if value is None:
        return NO_FIGURE
    if unit in NARROW_UNITS:
        scale, unit = next((one for one in NARROW_UNITS[unit] if value >= one[0]), (1, unit))
        return f"{_digits(value / scale)} {unit}"
    if unit.endswith("/s"):
        scale, prefix = next((one for one in WIDE_UNITS if value >= one[0]), (1, ""))
        return f"{_digits(value / scale)} {prefix}{unit}"
    return f"{_digits(value)} {unit}"


def _digits(value: float) -> str:
    if math.isinf(value):
        return "inf"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _cells(row: Row) -> list[str]:
    """What both tables say of a row."""
    spread = f"{amount(row.lowest, row.unit)} to {amount(row.highest, row.unit)}" if row.runs > 1 else ""
    theirs = f"{amount(row.theirs, row.unit)}, {row.peer}" if row.peer else NO_FIGURE
    cpu = NO_FIGURE
    if row.ours_cpu_s is not None:
        cpu = amount(row.ours_cpu_s) + (f" : {amount(row.theirs_cpu_s)}" if row.peer else "")
    ratio = NO_FIGURE if row.ratio is None else f"{row.ratio:.2f}"
    return [row.name, amount(row.ours, row.unit), spread, theirs, ratio, _verdict(row), cpu, str(row.runs)]


def _verdict(row: Row) -> str:
    return {None: "", True: "ahead", False: "behind"}[row.ahead]


HEADINGS = ["what", "ours", "lowest to highest", "peer", "ratio", "", "processor", "runs"]


def table(rows: Iterable[Row]) -> str:
    """The rows for a terminal."""
    lines = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(sheets: Iterable[Sheet]) -> str:
    """The sheets for a page of the documentation: where they were measured, and a table of each."""
    parts = []
    for one in sheets:
        lines = [f"**{one.name}**" + (f" ({', '.join(one.on.values())})" if one.on else ""), ""]
        cells = [HEADINGS, ["---"] * len(HEADINGS), *(_cells(row) for row in one.rows)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
        lines += [f"\nNot measured: {reason}" for reason in one.skipped]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


BEGIN, END = "<!-- figures begin -->", "<!-- figures end -->"
"""What a page has before and after its tables."""


def put_into(page: Path, text: str) -> None:
    """Replace what a page has between its marks.

    Raises:
        FiguresError: It has no marks.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise FiguresError(f"{page}: there are no lines {BEGIN} and {END} to put figures between")
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")


WIDTH, MIDDLE, HALF, LINE, TOP = 1040, 610, 190, 34, 80
"""Pixels of the picture: all, where the ratio is 1, how far bars reach from there, a row, and the head."""
LIMIT = 10.0
"""Ratios beyond this, or below one divided by it, are drawn as if they were this."""
STYLE = """
svg { background: #fff; color: #1f2328 }
svg { --ahead: #1a7f5a; --behind: #bc4c00; --grid: #d0d7de; --dim: #59636e }
text { font: 13px system-ui, sans-serif; fill: currentColor }
.title { font-size: 17px; font-weight: 600 }
.name { font-weight: 600 }
.dim { fill: var(--dim); font-size: 12px }
.grid { stroke: var(--grid) } .one { stroke: currentColor; stroke-width: 1.5 }
.ahead { fill: var(--ahead) } .behind { fill: var(--behind) }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; color: #e6edf3 }
  svg { --ahead: #3fb68b; --behind: #f0883e; --grid: #30363d; --dim: #9198a1 }
}
"""


def _place(ratio: float) -> float:
    """Where a ratio is on the axis, which is logarithmic: twice is as far from 1 as half."""
    inside = min(max(ratio, 1 / LIMIT), LIMIT)
    return MIDDLE + HALF * math.log(inside) / math.log(LIMIT)


def svg(sheets: Iterable[Sheet]) -> str:
    """A picture that needs no other file: a bar for each row that has a peer, from 1 to the ratio."""
    parts, at = [], TOP
    for one in sheets:
        rows = [row for row in one.rows if row.ratio is not None]
        if not rows:
            continue
        parts.append(_text(16, at, one.name, "name"))
        facts = list(one.on.values())
        for some in (facts[:3], facts[3:]):
            at += 17
            parts.append(_text(16, at, ", ".join(some), "dim"))
        at += 8
        parts += _axis(at, at + LINE * len(rows))
        for row in rows:
            parts += _bar(row, at)
            at += LINE
        at += LINE
    size = f'viewBox="0 0 {WIDTH} {at}" width="{WIDTH}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>Ours to the peer's</title><style>{STYLE}</style>",
        _text(16, 26, "Ours to the peer's, by ratio", "title"),
        _text(16, 46, "green: ours is ahead; orange: the peer is", "dim"),
    ]
    return "\n".join([*head, *parts, "</svg>", ""])


def _axis(top: int, bottom: int) -> list[str]:
    """Lines behind the bars of one sheet, and their ratios."""
    parts = []
    for ratio in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
        kind, x = "one" if ratio == 1 else "grid", _place(ratio)
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 14, f"{ratio:g}", "dim", "middle"))
    return parts


def _bar(row: Row, at: int) -> list[str]:
    ratio = LIMIT if row.ratio is None else row.ratio
    start, end = sorted((_place(1.0), _place(ratio)))
    figures = f"{amount(row.ours, row.unit)} : {amount(row.theirs, row.unit)} {row.peer}"
    width = max(end - start, 1.5)
    better = "less" if row.less_is_better else "more"
    return [
        _text(16, at + 13, row.name),
        _text(16, at + 28, f"{figures}; {better} is better", "dim"),
        f'<rect class="{_verdict(row)}" x="{start:.1f}" y="{at + 6}" width="{width:.1f}" height="18"/>',
        _text(MIDDLE + HALF + 14, at + 20, f"{ratio:.2f}" + _cpu(row)),
    ]


def _cpu(row: Row) -> str:
    if row.ours_cpu_s is None or row.theirs_cpu_s is None:
        return ""
    return f"  (CPU {amount(row.ours_cpu_s)} : {amount(row.theirs_cpu_s)})"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def main() -> int:
    """Print what is kept in a directory."""
    parser = argparse.ArgumentParser(description="Show what benchmarks have found.")
    parser.add_argument("directory", type=Path, help="where their JSON is, such as .cache/bench")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--markdown", action="store_true", help="tables for docs/performance.md")
    shape.add_argument("--svg", action="store_true", help="the picture")
    shape.add_argument(
        "--into", type=Path, metavar="PAGE", help="put the tables into a page, between its marks"
    )
    options = parser.parse_args()
    try:
        sheets = read(options.directory)
        if options.into is not None:
            put_into(options.into, markdown(sheets))
            return 0
    except (FiguresError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.markdown or options.svg:
        print((markdown if options.markdown else svg)(sheets), end="")
    else:
        print("\n\n".join(f"{one.name}\n{table(one.rows)}" for one in sheets))
    return 0


if __name__ == "__main__":
    sys.exit(main())
