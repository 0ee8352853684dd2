"""The digest of a saved machine's file, computed on two processors.

It is the digest of the digests of the file's parts, because each start reads all of the file before its guest
runs, and one digest over the whole would take one processor twice as long. Importing this takes little, so
that it can begin while the rest of a start is imported.
"""

import hashlib
import mmap
import struct
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import BinaryIO, Final

ALGORITHM: Final = "sha256"
"""For which processors have instructions."""
PART_BYTES: Final = 4 << 20
"""How long a part is; the last one is shorter. It takes some milliseconds."""
DIGESTED_FROM: Final = struct.calcsize("<8sI32s")
"""Where what the digest is over begins, see `nitro_vmm.snapshot.layout`."""


def _nothing() -> None:
    """Never give up."""


class Digesting:
    """The digest of a content, which any number of threads compute together.

    Args:
        view: The content. It is in use until `close`.
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._waiting = list(range(0, len(view), PART_BYTES))[::-1]
        """Where the parts begin that nobody has taken yet."""
        self._busy = 0
        """How many threads have taken one."""
        self._changed = threading.Condition()
        self._digests: dict[int, bytes] = {}

    def help(self, proceed: Callable[[], None] = _nothing) -> None:
        """Compute what nobody else computes; returns when nothing is left to begin.

        Args:
            proceed: Called before each part, in this thread; what it raises is raised here.
        """
        while True:
            proceed()
            with self._changed:
                if not self._waiting:
                    return
                start = self._waiting.pop()
                self._busy += 1
            try:
                with self._view[start : start + PART_BYTES] as part:
                    self._digests[start] = hashlib.new(ALGORITHM, part).digest()
            except BaseException:
                with self._changed:
                    self._waiting.append(start)  # for another thread, which may have more memory
                raise
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _help_if_possible(self) -> None:
        with suppress(MemoryError):
            self.help()

    def result(self, proceed: Callable[[], None] = _nothing) -> bytes:
        """The digest, for which this thread and another one do what is left to do.

        Args:
            proceed: See `help`.
        """
        if len(self._waiting) > 1:
            with suppress(RuntimeError):  # there is no room for another thread, and it goes without
                threading.Thread(target=self._help_if_possible, name="digest", daemon=True).start()
        while True:  # until nothing is left of what others could not do
            self.help(proceed)
            self._settle()
            if not self._waiting:
                break
        whole = b"".join(self._digests[start] for start in range(0, len(self._view), PART_BYTES))
        return hashlib.new(ALGORITHM, whole).digest()

    def close(self) -> None:
        """Begin no other part, and wait until nobody uses the content."""
        with self._changed:
            self._waiting.clear()
            self._settle()
            self._waiting.clear()  # of what has failed meanwhile

    def _settle(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)


class FileDigest(Digesting):
    """The digest of a saved machine's file.

    Args:
        file: The file.
        file_bytes: Its length, which is more than the header's.

    Raises:
        OSError: It cannot be mapped.
    """

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        self.file_bytes: int = file_bytes
        """How much of the file it is of."""
        self._data = mmap.mmap(file.fileno(), file_bytes, prot=mmap.PROT_READ)
        self._whole = memoryview(self._data)
        self._digested = self._whole[DIGESTED_FROM:]
        super().__init__(self._digested)

    def close(self) -> None:
        """See `Digesting.close`. May be called more than once."""
        super().close()
        for view in (self._digested, self._whole):
            view.release()
        self._data.close()


def digest_of(view: memoryview, proceed: Callable[[], None] = _nothing) -> bytes:
    """The digest of a content.

    Args:
        view: The content.
        proceed: See `Digesting.help`.
    """
    with closing(Digesting(view)) as digesting:
        return digesting.result(proceed)
