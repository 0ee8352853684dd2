"""A timeline as a web page: one file that needs no network and no scripts, and that prints well.

Everything that comes from the enclave is escaped, and the page's own policy forbids scripts and everything
from elsewhere, because whoever opens it trusts the file and not the enclave.
"""

import html
import json
from collections.abc import Sequence
from typing import Any, Final

from nitro_vmm.enclave.timeline import (
    APPLICATION_ENDED,
    END,
    FIRST_OUTPUT,
    HEARTBEAT,
    INIT,
    LAUNCH,
    PANIC,
    STARTED,
    Moment,
)

PHASES: Final = (
    ("vmm", LAUNCH, STARTED, "reads, measures and loads the image"),
    ("kernel", STARTED, INIT, "from its first instruction to init"),
    ("init", INIT, HEARTBEAT, "from its start to the heartbeat"),
    ("kernel and init", STARTED, HEARTBEAT, "from the kernel's first instruction to the heartbeat"),
    ("application", HEARTBEAT, END, "from the heartbeat to the end"),
)
"""Name, the moments at which it begins and ends, and what it is. Without its moments it is left out."""
WHOLE: Final = "kernel and init"
"""Shown where the kernel did not tell when it started init."""

WIDTH: Final = 1000.0
ROW: Final = 26
LEFT: Final = 10

STYLE: Final = """
:root { color-scheme: light dark; --line: #8886; --bar: #3b7dd8; --mark: #c2410c; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
svg { width: 100%; height: auto; overflow: visible; } svg text { font-size: 12px; fill: currentColor; }
.phase { fill: var(--bar); fill-opacity: .75; } .moment { fill: var(--mark); } .axis { stroke: var(--line); }
table { border-collapse: collapse; width: 100%; } th { text-align: left; }
td, th { padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def page(moments: Sequence[Moment], facts: dict[str, str], data: dict[str, Any]) -> str:
    """The whole page.

    Args:
        moments: The earliest first; there is at least one.
        facts: What stands above the picture, by name.
        data: The same as JSON, which the page carries for programs.
    """
    rows = "".join(
        _row(moment, before) for moment, before in zip(moments, [moments[0], *moments], strict=False)
    )
    shown = "".join(f"<tr><th>{_text(name)}</th><td>{_text(fact)}</td></tr>" for name, fact in facts.items())
    # In a script element only "</" and "<!--" would end or change the text; JSON can do without "<".
    embedded = json.dumps(data).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width">
<title>Boot of {_text(facts.get("image", "an enclave"))}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Boot of {_text(facts.get("image", "an enclave"))}</h1>
<table id="facts">{shown}</table>
<h2>Phases</h2>
{_picture(moments)}
<h2>Moments</h2>
<table id="moments">
<thead><tr><th class="number">s since launch</th><th class="number">s since the one before</th>
<th class="number">kernel's clock, s</th><th>what</th><th>more</th></tr></thead>
<tbody>{rows}</tbody>
</table>
<script type="application/json" id="data">{embedded}</script>
</body>
</html>
"""


def _row(moment: Moment, before: Moment) -> str:
    kernel = "" if moment.kernel_s is None else f"{moment.kernel_s:.6f}"
    numbers = (f"{moment.at_s:.3f}", f"{moment.at_s - before.at_s:.3f}", kernel)
    return (
        "<tr>"
        + "".join(f'<td class="number">{number}</td>' for number in numbers)
        + f"<td>{_text(moment.name)}</td><td>{_text(moment.detail)}</td></tr>\n"
    )


def _picture(moments: Sequence[Moment]) -> str:
    """Bars of the phases, and a mark for each moment, over one axis of time."""
    at_s = {moment.name: moment.at_s for moment in moments}
    last_s = max(moments[-1].at_s, 0.001)
    if HEARTBEAT in at_s:
        # An application may run for hours; the boot is what is looked at.
        last_s = min(last_s, at_s[HEARTBEAT] * 1.25)
    scale = (WIDTH - 2 * LEFT) / last_s

    def x(seconds: float) -> float:
        return LEFT + min(seconds, last_s) * scale

    parts, row = [], 0
    for name, begin, end, what in PHASES:
        if name == WHOLE and INIT in at_s:
            continue
        if begin in at_s and end in at_s and at_s[end] >= at_s[begin]:
            left, width = x(at_s[begin]), max(x(at_s[end]) - x(at_s[begin]), 1.0)
            # Beside a bar that begins far to the right, because its label would leave the picture.
            late = left > WIDTH * 0.75
            place = f'x="{left - 4:.1f}" text-anchor="end"' if late else f'x="{left + 4:.1f}"'
            title = f"{name}: {at_s[end] - at_s[begin]:.3f} s"
            parts.append(
                f'<rect class="phase" x="{left:.1f}" y="{row * ROW}" width="{width:.1f}" height="{ROW - 8}">'
                f"<title>{title}, {what}</title></rect>"
                f'<text {place} y="{row * ROW + 13}">{title}</text>'
            )
            row += 1
    axis = row * ROW + 10
    for moment in moments:
        marked = moment.name in {FIRST_OUTPUT, HEARTBEAT, APPLICATION_ENDED, PANIC, END}
        parts.append(
            f'<circle class="moment" cx="{x(moment.at_s):.1f}" cy="{axis}" r="{5 if marked else 3}">'
            f"<title>{moment.at_s:.3f} s: {_text(moment.name)}</title></circle>"
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - LEFT}" y1="{axis}" y2="{axis}"/>')
    for tenth in range(0, 11, 2):
        seconds = last_s * tenth / 10
        anchor = "start" if tenth == 0 else "end" if tenth == 10 else "middle"
        parts.append(
            f'<text x="{x(seconds):.1f}" y="{axis + 22}" text-anchor="{anchor}">{seconds:.2f} s</text>'
        )
    return f'<svg viewBox="0 0 {WIDTH:.0f} {axis + 30}" role="img" aria-label="Phases">{"".join(parts)}</svg>'


def _text(text: str) -> str:
    return html.escape(text)
