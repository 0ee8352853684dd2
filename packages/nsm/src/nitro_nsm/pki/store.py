"""Where the test root lives: one file in the user's data directory, made on first use.

The file holds the private key and the certificate together, so that they can be made, replaced and read in
one step: two processes that make a root at the same time end up with the same one.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nitro_nsm.errors import HostError, InputError
from nitro_nsm.pki.stored import StoredRoot

if TYPE_CHECKING:
    from nitro_nsm.pki.authority import Root

TEST_ROOT = "test"
"""The name of the root that we make ourselves."""
FILE_NAME = "test-root.pem"


def data_directory() -> Path:
    """`$XDG_DATA_HOME/nitro-nsm`, by default `~/.local/share/nitro-nsm` (XDG Base Directory Specification).

    A value that is not absolute is ignored, as the specification asks.

    Raises:
        HostError: The user has no home directory.
    """
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    if base.is_absolute():
        return base / "nitro-nsm"
    try:
        return Path.home() / ".local" / "share" / "nitro-nsm"
    except RuntimeError as error:
        raise HostError(
            "there is no home directory to keep the test root in", hint="set XDG_DATA_HOME to a directory"
        ) from error


def root_path(directory: Path | None = None) -> Path:
    """The file of the test root, by default in `data_directory`."""
    return (directory or data_directory()) / FILE_NAME


def read_test_root(directory: Path | None = None) -> "Root":
    """The test root, which must be there already.

    Args:
        directory: Where it is kept; by default `data_directory`.

    Raises:
        InputError: There is none yet, or the file is damaged.
        HostError: The file cannot be read.
    """
    from nitro_nsm.pki.authority import Root  # noqa: PLC0415 - takes cryptography, which a stored root does not

    path = root_path(directory)
    try:
        return Root.load(TEST_ROOT, path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"there is no test root yet ({path})",
            hint="the first document makes it, as does `nsm pki show`",
        ) from None
    except OSError as error:
        raise HostError(
            f"the test root cannot be read: {error}",
            hint="set XDG_DATA_HOME to a directory that can be read and written",
        ) from error
    except InputError as error:
        raise InputError(f"{path}: {error}", hint="`nsm pki rotate` makes a new one") from error


def ensure_test_root(directory: Path | None = None) -> "Root":
    """The test root, which is made now if there is none.

    Args:
        directory: Where it is kept; by default `data_directory`.

    Raises:
        InputError: The file is damaged.
        HostError: The file can be neither read nor made.
    """
    from nitro_nsm.pki.authority import Root  # noqa: PLC0415 - see `read_test_root`

    path = root_path(directory)
    with _host_errors("made"):
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (
                _written_beside(path, Root.create(TEST_ROOT, entropy=os.urandom)) as new,
                suppress(FileExistsError),
            ):
                os.link(new, path)  # a rename would replace a root that another process made meanwhile
    return read_test_root(directory)


def stored_test_root(directory: Path | None = None) -> "Root | StoredRoot":
    """The test root, which is made now if there is none; as it is stored, if it looks as it should.

    Args:
        directory: Where it is kept; by default `data_directory`.

    Raises:
        InputError: The file is damaged.
        HostError: The file can be neither read nor made.
    """
    with suppress(OSError):  # none is there yet, or else `ensure_test_root` says what is wrong
        if (stored := StoredRoot.of(TEST_ROOT, root_path(directory).read_bytes())) is not None:
            return stored
    return ensure_test_root(directory)


def rotate_test_root(directory: Path | None = None) -> "Root":
    """Replace the test root by a new one. Documents of the old one no longer verify.

    Args:
        directory: Where it is kept; by default `data_directory`.

    Raises:
        HostError: The file cannot be made.
    """
    from nitro_nsm.pki.authority import Root  # noqa: PLC0415 - see `read_test_root`

    path = root_path(directory)
    root = Root.create(TEST_ROOT, entropy=os.urandom)
    with _host_errors("replaced"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _written_beside(path, root) as new:
            new.replace(path)
    return root


@contextmanager
def _host_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"the test root cannot be {what}: {error}",
            hint="set XDG_DATA_HOME to a directory that can be written",
        ) from error


@contextmanager
def _written_beside(path: Path, root: "Root") -> Iterator[Path]:
    """A temporary file that only we can read, with `root` in it."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    new.touch(mode=0o600, exist_ok=False)
    try:
        with new.open("wb") as file:
            file.write(root.pem())
            file.flush()
            os.fsync(file.fileno())
        yield new
    finally:
        new.unlink(missing_ok=True)
