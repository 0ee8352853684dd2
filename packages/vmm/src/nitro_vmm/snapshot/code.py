"""Which code gives a saved state its meaning."""

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import nitro_vsock

FOLDERS: Final = ("accel", "boot", "devices", "machine", "snapshot")
VSOCK_FOLDERS: Final = ("device", "virtio")
SUFFIXES: Final = (".py", ".so")


@cache
def code_digest() -> bytes:
    """The digest of the files that make a machine what it is.

    A version number would do for releases. Between two of them a state may change its meaning with any change
    of these files, and a state that is taken for another one could do anything.
    """
    digest = hashlib.sha256()
    here, vsock = str(Path(__file__).parents[1]), nitro_vsock.__path__[0]
    for root, folders in ((here, FOLDERS), (vsock, VSOCK_FOLDERS)):
        for folder in folders:
            for path in sorted(_files(f"{root}/{folder}")):
                with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - pathlib takes twice as long
                    content = file.read()
                digest.update(f"{path.removeprefix(root)} {len(content)}\n".encode())
                digest.update(content)
    return digest.digest()


def _files(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path)
            elif entry.name.endswith(SUFFIXES):
                yield entry.path
