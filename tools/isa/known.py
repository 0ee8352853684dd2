"""What is known to differ and stays so, with the reason; the documentation says the same to users."""

import re
from typing import Final, NamedTuple

from isa.compare import Difference


class Known(NamedTuple):
    """Forms whose code matches, as long as nothing but these fields differs."""

    code: str
    """A regular expression."""
    fields: frozenset[str]
    reason: str


KNOWN: Final[tuple[Known, ...]] = ()


def reason(difference: Difference) -> str | None:
    """Why a difference is accepted; `None` if it is not."""
    for known in KNOWN:
        if re.search(known.code, difference.form.code) and known.fields.issuperset(difference.fields):
            return known.reason
    return None
