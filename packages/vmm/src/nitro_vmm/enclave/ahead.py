"""Digests of the files of a launch, begun before the code is there that asks for them.

To import that code takes one processor as long as the digests take another. So a command lets both go on
side by side. Whoever asks gets the digest of the file that was opened here, together with that file, and
never that of another one that has its name by then. What cannot be read is left to whoever reads it and says
why. Only what lets go of Python's lock is done here, because the imports need it all the time.

Importing this takes little.
"""

import os
import stat
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from nitro_vmm.snapshot.digest import FileDigest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from nitro_eif import Eif, Measured
    from nitro_vmm.plain_config import EnclaveSettings

LOOK_S = 0.005
"""How often whoever waits for a digest looks whether it is to give up."""


class _Stopped(Exception):  # noqa: N818 - no error
    """Nobody wants the digests any more."""


class Ahead:
    """What a thread of its own does for a launch while the launch is prepared; use it in a ``with`` block.

    Args:
        config: What is launched.
    """

    def __init__(self, config: "EnclaveSettings") -> None:
        self._image_path = None if config.eif_path == config.snapshot_path else config.eif_path
        self._resources = ExitStack()
        self._saved: tuple[BinaryIO, FileDigest] | None = None
        if config.snapshot_path is not None:
            with suppress(OSError, ValueError):  # of what has no digest: it is too short, or no file
                self._saved = self._open_saved(config.snapshot_path)
        self._opened = self._resources.enter_context(ExitStack())
        self._image: tuple[Eif, Measured] | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="digests", daemon=True)

    def __enter__(self) -> Self:
        with suppress(RuntimeError):  # there is no room for another thread
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        value: BaseException | None,
        trace: "TracebackType | None",
    ) -> None:
        self._stopped = True
        if self._thread.ident is not None:
            self._thread.join()
        self._resources.close()

    @property
    def saved(self) -> tuple[BinaryIO, FileDigest] | None:
        """The saved machine's file and its digest; both are closed at the end of the block."""
        return self._saved

    @contextmanager
    def image(self, proceed: "Callable[[], None]") -> "Iterator[tuple[Eif, Measured] | None]":
        """The image, open in this block only, and what it measures; `None` if it could not be read.

        Args:
            proceed: Called while this waits; what it raises is raised here.
        """
        while self._thread.is_alive():
            proceed()
            self._thread.join(LOOK_S)
        # Not kept here, because the file is mapped for as long as anybody has the image.
        image, self._image = self._image, None
        with self._opened:
            yield image

    def _open_saved(self, path: Path) -> tuple[BinaryIO, FileDigest] | None:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe might take for ever
            return None
        file = self._resources.enter_context(path.open("rb"))
        digest = FileDigest(file, os.fstat(file.fileno()).st_size)
        self._resources.callback(digest.close)
        return file, digest

    def _run(self) -> None:
        with suppress(Exception):  # whoever reads the file finds the same
            if self._saved is not None:
                self._saved[1].help(self._proceed)
            if self._image_path is not None and stat.S_ISREG(self._image_path.stat().st_mode):
                self._measure(self._image_path)

    def _measure(self, path: Path) -> None:
        from nitro_eif import Eif, measure_and_checksum  # noqa: PLC0415 - imported by the launch meanwhile

        eif = self._opened.enter_context(Eif.open(path))
        self._image = eif, measure_and_checksum(eif, progress=lambda _done, _total: self._proceed())

    def _proceed(self) -> None:
        if self._stopped:
            raise _Stopped
