"""The cache: files that take long to make and can be made again, such as saved machines.

They lie in ``$XDG_CACHE_HOME/nitro-vmm``, which only its user may enter. An entry's name is its kind and its
key, ``kernel-0123abcd``. The key is a digest of all that the contents depend on, so an entry never changes:
it is there or it is not. Entries are written under another name and renamed, so that nobody sees half of one.
Only so many bytes and entries are kept, and what was not used for longest goes first. An entry that goes
while somebody has it open or mapped stays theirs.

Everything here is of the standard library and quick to load, because every start looks here.
"""

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from nitro_vmm.errors import HostError, UsageError

BYTES_MAX: Final = 2 << 30
"""What the cache may hold: some forty saved machines. ``VMM_CACHE_MIB`` sets another bound."""
ENTRIES_MAX: Final = 200
"""How many entries it may hold, because each look at the cache goes through all of them."""
BOUND: Final = "VMM_CACHE_MIB"
"""The environment variable that bounds the cache, in MiB."""

NAME: Final = re.compile(r"(?P<kind>[a-z]+)-(?P<key>[0-9a-f]{8,128})")
NEW: Final = ".new-"
"""Begins the name of an entry that is being written. Its writer holds a lock on it."""


class CacheEntry(NamedTuple):
    """One file of the cache."""

    name: str
    """Kind and key, with a hyphen in between."""
    bytes: int
    """How much of the disk it takes."""
    made_at: float
    """When it was written, seconds since 1970."""
    used_at: float
    """When it was opened last, seconds since 1970."""

    @property
    def kind(self) -> str:
        """What it is: the part of the name before the hyphen."""
        return self.name.partition("-")[0]


class Cache:
    """The cache of this user.

    Args:
        directory: Where it is; `None`: where this user's cache is. It is made when something is added.
        bytes_max: How many bytes it may hold; `None`: what ``VMM_CACHE_MIB`` says, or `BYTES_MAX`.
        entries_max: How many entries it may hold.

    Raises:
        UsageError: ``VMM_CACHE_MIB`` is no number.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        bytes_max: int | None = None,
        entries_max: int = ENTRIES_MAX,
    ) -> None:
        self.directory: Path = directory or _user_directory()
        """Where it is."""
        self.bytes_max: int = _bound() if bytes_max is None else bytes_max
        """How many bytes it may hold."""
        self._entries_max = entries_max

    def open(self, name: str) -> BinaryIO | None:
        """Open an entry to read, and note that it was used; `None` if there is none of this user's."""
        path = self._path(name)
        try:
            if not path.is_file():  # to open a pipe might take for ever
                return None
            file = path.open("rb")
        except OSError:
            return None
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            file.close()
            return None
        with suppress(OSError):  # a disk that can only be read keeps no record of use
            os.utime(file.fileno(), ns=(time.time_ns(), status.st_mtime_ns))
        return file

    @contextmanager
    def making(self, name: str) -> Iterator[BinaryIO | None]:
        """A new file, which becomes the entry when the block ends well, and nothing when it does not.

        `None` where there is nothing to do: the entry is there, or another process is making it. What makes
        the cache too large then goes, and so does what killed processes left.

        Raises:
            HostError: The cache cannot be written.
        """
        path, new = self._path(name), self.directory / f"{NEW}{name}"
        try:
            self._make_directory()
            self._remove_stale()
            file = None if path.exists() else _claim(new)
        except OSError as error:
            raise _trouble(self.directory, error) from error
        if file is None:
            yield None
            return
        with file:
            try:
                yield file
                file.flush()
                new.replace(path)
            except OSError as error:
                new.unlink(missing_ok=True)
                raise _trouble(self.directory, error) from error
            except BaseException:
                new.unlink(missing_ok=True)
                raise
        self._shrink(keep=name)

    def entries(self) -> list[CacheEntry]:
        """What is there, that which was used last first."""
        found = []
        with suppress(OSError), os.scandir(self.directory) as files:
            for file in files:
                if NAME.fullmatch(file.name) is None:
                    continue
                with suppress(OSError):  # gone meanwhile
                    status = file.stat(follow_symlinks=False)
                    size = status.st_blocks * 512
                    used_at = max(status.st_atime, status.st_mtime)  # a new one was used by its maker
                    found.append(CacheEntry(file.name, size, status.st_mtime, used_at))
        return sorted(found, key=lambda entry: (-entry.used_at, entry.name))

    def remove(self, name: str) -> None:
        """Remove an entry.

        Raises:
            UsageError: There is none of this name.
            HostError: It cannot be removed.
        """
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise UsageError(f"the cache has no {name}", hint="vmm cache shows what it has") from None
        except OSError as error:
            raise _trouble(self.directory, error) from error

    def clear(self) -> list[CacheEntry]:
        """Remove all entries and what killed processes left; returns what was there.

        Raises:
            HostError: An entry cannot be removed.
        """
        removed = self.entries()
        for entry in removed:
            with suppress(UsageError):  # another process was quicker
                self.remove(entry.name)
        self._remove_stale()
        return removed

    def _path(self, name: str) -> Path:
        if NAME.fullmatch(name) is None:
            raise UsageError(f"{name!r} is no name of an entry", hint="vmm cache shows what there is")
        return self.directory / name

    def _make_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise HostError(
                f"{self.directory} is not a directory that only you may use",
                hint=f"remove it, or: chmod 700 {self.directory}",
            )

    def _remove_stale(self) -> None:
        for path in self.directory.glob(f"{NEW}*"):
            with suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    if _lock(fd) and _is(path, fd):
                        path.unlink()
                finally:
                    os.close(fd)

    def _shrink(self, *, keep: str) -> None:
        kept_bytes = kept = 0
        entries = self.entries()
        for entry in sorted(entries, key=lambda entry: entry.name != keep):  # stable, and ``keep`` is first
            kept_bytes += entry.bytes
            kept += 1
            if entry.name != keep and (kept_bytes > self.bytes_max or kept > self._entries_max):
                kept_bytes -= entry.bytes
                kept -= 1
                with suppress(OSError):
                    self._path(entry.name).unlink()


def _user_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base, "nitro-vmm") if base else Path.home() / ".cache" / "nitro-vmm"


def _bound() -> int:
    text = os.environ.get(BOUND)
    if not text:
        return BYTES_MAX
    if not text.isascii() or not text.isdecimal():
        raise UsageError(f"{BOUND} is {text!r}", hint="a number of MiB")
    return int(text) << 20


def _claim(path: Path) -> BinaryIO | None:
    """A new file under the writer's lock; `None` if another process has it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if not _lock(fd):
            os.close(fd)
            return None
        if _is(path, fd):
            os.truncate(fd, 0)
            return os.fdopen(fd, "r+b")
        os.close(fd)  # whoever had it has renamed or removed it meanwhile


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        raise
    return True


def _is(path: Path, fd: int) -> bool:
    """Whether the file that is open is still the one of this name."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _trouble(directory: Path, error: OSError) -> HostError:
    return HostError(
        f"the cache {directory}: {error.strerror}",
        hint="vmm cache clear makes room; XDG_CACHE_HOME puts the cache elsewhere",
    )
