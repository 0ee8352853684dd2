"""Where the vectors are, which are not part of the project, and what is expected of them."""

import json
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).resolve().parents[4] / "shared" / "vectors"


def expectations(folder: str) -> list[dict[str, Any]]:
    """The entries of a folder's `expected.json`; none where there are no vectors."""
    path = VECTORS / folder / "expected.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found
