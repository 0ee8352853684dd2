"""The digest of a saved machine's file, computed on two processors.

It is the digest of the digests of the file's parts, because each start reads all of the file before its guest
runs, and one digest over the whole would take one processor twice as long.
"""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from nitro_vmm.boot.ram import Proceed, nothing

ALGORITHM: Final = "sha256"
"""For which processors have instructions."""
PART_BYTES: Final = 4 << 20
"""How long a part is; the last one is shorter. It takes some milliseconds."""


def digest_of(view: memoryview, proceed: Proceed = nothing) -> bytes:
    """The digest of a file's content.

    Args:
        view: The content.
        proceed: See `Proceed`; called in this thread.
    """
    waiting = iter(range(0, len(view), PART_BYTES))
    lock = threading.Lock()
    digests: dict[int, bytes] = {}

    def take() -> int | None:
        with lock:
            return next(waiting, None)

    def work(proceed: Proceed) -> None:
        while (start := take()) is not None:
            proceed()
            with view[start : start + PART_BYTES] as part:
                digests[start] = hashlib.new(ALGORITHM, part).digest()

    with ThreadPoolExecutor(1) as helper:
        helped = helper.submit(work, nothing) if len(view) > PART_BYTES else None
        try:
            work(proceed)
        finally:
            # The helper must not go on with a view that the caller is about to close, and ends with its part.
            waiting = iter(())
        if helped is not None:
            helped.result()
    return hashlib.new(ALGORITHM, b"".join(digests[start] for start in sorted(digests))).digest()
