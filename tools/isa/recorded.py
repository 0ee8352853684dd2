"""Results of a processor of before, for machines that lack a feature: a digest for each form.

The file is a header (seed, inputs of each kind, forms; u32 little-endian) and for each form 4 bytes of its
name's SHA-256 and 8 of its results'. `README.md` in this folder says which processor it was.
"""

import hashlib
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from isa.form import Form

FILE: Final = Path(__file__).with_name("recorded.bin")
HEADER: Final = struct.Struct("<III")
LINE: Final = struct.Struct("<4s8s")


def _key(form: Form) -> bytes:
    return hashlib.sha256(f"{form.code}/{form.inputs}/{form.flags}/{form.status}".encode()).digest()[:4]


def digest(records: bytes) -> bytes:
    """What is kept of a form's results."""
    return hashlib.sha256(records).digest()[:8]


@dataclass(slots=True)
class Recorded:
    """The digests of one seed."""

    seed: int
    count: int
    """Inputs of each kind."""
    digests: dict[bytes, bytes] = field(default_factory=dict)

    def add(self, form: Form, records: bytes) -> None:
        """Keep a form's results; not where processors may approximate."""
        if form.digits is None and not form.refused:
            self.digests[_key(form)] = digest(records)

    def agrees(self, form: Form, records: bytes) -> bool | None:
        """Whether the results are the recorded ones; `None` where there are none."""
        known = self.digests.get(_key(form))
        return None if known is None else known == digest(records)


def load(path: Path = FILE) -> Recorded:
    """What is recorded."""
    data = path.read_bytes()
    seed, count, forms = HEADER.unpack_from(data)
    lines = LINE.iter_unpack(data[HEADER.size : HEADER.size + forms * LINE.size])
    return Recorded(seed, count, dict(lines))


def save(recorded: Recorded, path: Path = FILE) -> None:
    """Write it down."""
    lines = (LINE.pack(*line) for line in sorted(recorded.digests.items()))
    path.write_bytes(HEADER.pack(recorded.seed, recorded.count, len(recorded.digests)) + b"".join(lines))
