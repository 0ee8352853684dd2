"""All forms, in groups."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from isa import absent, general, vector, x87
from isa.form import Form

GENERATORS: Final = (
    ("integer", general.forms),
    ("vector", vector.forms),
    ("x87", x87.forms),
    ("absent", absent.forms),
)
GROUPS: Final = (
    *("integer", "bit manipulation", "crc32", "flags across instructions", "refused encodings"),
    *("vector", "floating", "string compares", "misaligned", "unmasked", "mmx"),
    *("x87", "x87 stack faults", "x87 functions", "absent"),
)
_MISALIGNED: Final = re.compile(
    r"xmmword ptr \[MEM\+2\d\]|(aps|apd|dqa|nt..?|ntdqa?|dup) .*\[MEM\+(20|24|36|57)\]"
)


def all_forms() -> list[Form]:
    """All of them; no two are equal."""
    return list(dict.fromkeys(_grouped()))


def _grouped() -> Iterator[Form]:
    for name, forms in GENERATORS:
        for form in forms():
            yield replace(form, group=_group(name, form))


def _group(table: str, form: Form) -> str:
    """What a form is counted under."""
    if table == "integer":
        if form.needs in {"bmi1", "bmi2"}:
            return "bit manipulation"
        if form.needs == "sse4_2":
            return "crc32"
        if form.code.startswith((".byte 0x", "ud2", "int3")) and form.code != ".byte 0x90":
            return "refused encodings"
        return "flags across instructions" if "r12" in form.code and ";" in form.code else "integer"
    if table == "vector":
        if "pcmpistr" in form.code or "pcmpestr" in form.code:
            return "string compares"
        if form.multimedia:
            return "mmx"
        if _MISALIGNED.search(form.code) and "sd " not in form.code:
            return "misaligned"
        if re.search(r"0x1f00|0x1d80|0x1b80|0x1780|0x0f80|0xf80|0x10000|ldmxcsr \[MEM\+16\]$", form.code):
            return "unmasked"
        return "floating" if form.inputs in {"singles", "doubles"} else "vector"
    if table == "x87":
        if form.digits is not None:
            return "x87 functions"
        return "x87 stack faults" if form.inputs == "x87 stack" else "x87"
    return table
