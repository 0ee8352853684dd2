"""Which code gives a saved state its meaning."""

import hashlib
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
    here, vsock = Path(__file__).parents[1], Path(nitro_vsock.__path__[0])
    folders = [*((here, folder) for folder in FOLDERS), *((vsock, folder) for folder in VSOCK_FOLDERS)]
    for root, folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES:
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root)} {len(content)}\n".encode())
                digest.update(content)
    return digest.digest()
