"""Who runs: a directory for each enclave of this user, which any command can read.

Everything here is of the standard library and quick, because ``vmm ps`` must not wait for an emulator. In
``$XDG_RUNTIME_DIR/nitro-vmm/NAME/`` are

* ``lock``: locked by the enclave's process for as long as it lives, so that the kernel knows who is alive,
  whatever was killed and however often process numbers were used again;
* ``state.json``: an `Entry`, replaced as a whole whenever it changes;
* ``control``: the socket on which the process takes requests, see `nitro_vmm.run.control`;
* ``console.log`` and ``console.log.1``, what the enclave printed; ``messages.log``, what its process said.

A directory is made under another name, and renamed once its process holds the lock, so that nobody sees one
that is half made.
"""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from nitro_vmm.defaults import CID_DEFAULT
from nitro_vmm.errors import HostError, UsageError

STATE_BYTES_MAX: Final = 1 << 20
STARTING: Final = "starting"
RUNNING: Final = "running"
ENDED: Final = "ended"
KILLED: Final = "killed"
"""What `Entry.status` may be; a process that is gone without having written `ENDED` was killed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One enclave, as its process wrote it."""

    name: str
    """Its name, which is the directory's."""
    pid: int
    """Its process."""
    image: str
    """The image's path."""
    cid: int
    """Its vsock address."""
    started_at: float
    """When it was launched, in seconds since 1970."""
    status: str = STARTING
    """`STARTING`, `RUNNING`, `ENDED` or `KILLED`."""
    id: str = ""
    """The security module's name of it."""
    memory_mib: int = 0
    """How much memory it has."""
    processors: int = 1
    """How many processors it has."""
    debug_mode: bool = False
    """Whether documents show zeros for PCR0, PCR1, PCR2 and PCR8."""
    console: bool = True
    """Whether its console is shown."""
    booted_s: float | None = None
    """How many seconds after the launch the heartbeat came."""
    measurements: dict[str, str] = field(default_factory=dict)
    """Of the image."""
    sockets: list[str] = field(default_factory=list)
    """Unix sockets that go away with it."""
    published: list[str] = field(default_factory=list)
    """Where its ports are on this machine: ``ADDRESS=PORT``."""
    kms: str | None = None
    """Where this machine's programs reach its local KMS."""
    report: dict[str, Any] | None = None
    """How it ended, as ``vmm run --json`` says it."""


def runtime_directory() -> Path:
    """Where the enclaves' directories are; made if it is not there.

    Raises:
        HostError: It cannot be made, or somebody else may write there.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base, "nitro-vmm") if base else Path(tempfile.gettempdir(), f"nitro-vmm-{os.geteuid()}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise HostError(
            f"{path}: {error.strerror}", hint="set XDG_RUNTIME_DIR to a directory of yours", code="M14"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise HostError(
            f"{path} is not a directory that only you may use",
            hint=f"remove it, or: chmod 700 {path}",
            code="M14",
        )
    return path


def entries() -> list[Entry]:
    """All enclaves, running and ended, by name; what killed ones left is tidied up."""
    directory = runtime_directory()
    found = (_look(path) for path in sorted(directory.iterdir()) if not path.name.startswith("."))
    return [entry for entry in found if entry is not None]


def find(name: str) -> Entry:
    """The enclave of a name or id.

    Raises:
        UsageError: There is none.
    """
    known = entries()
    for entry in known:
        if name in {entry.name, entry.id}:
            return entry
    names = ", ".join(entry.name for entry in known)
    raise UsageError(
        f"there is no enclave {name}", hint=f"there are: {names}" if names else "vmm run -d EIF", code="M10"
    )


def alive(entry: Entry) -> bool:
    """Whether its process runs, as the entry says; see `entries`, which asks the kernel."""
    return entry.status in {STARTING, RUNNING}


def directory_of(entry: Entry) -> Path:
    """Where its files are."""
    return runtime_directory() / entry.name


def remove(entry: Entry) -> None:
    """Forget an enclave that has ended.

    Raises:
        UsageError: It runs.
    """
    if alive(entry):
        raise UsageError(f"{entry.name} is running", hint=f"vmm stop {entry.name}", code="M11")
    with _registry_lock():
        now = _look(directory_of(entry))
        if now is not None and not alive(now):
            shutil.rmtree(directory_of(entry), ignore_errors=True)


@contextmanager
def process_of(entry: Entry) -> Iterator[int | None]:
    """A pidfd of the enclave's process; `None` if it is gone. It cannot be another process's."""
    try:
        pidfd = os.pidfd_open(entry.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # The lock is looked at once the pidfd is there: held now, its holder is what the pidfd means.
        now = _look(directory_of(entry))
        yield pidfd if now is not None and alive(now) and now.pid == entry.pid else None
    finally:
        os.close(pidfd)


def kill(entry: Entry) -> None:
    """End its process at once, whatever it does."""
    with process_of(entry) as pidfd:
        if pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)


@contextmanager
def control_address(directory: Path) -> Iterator[str]:
    """The control socket's path, short enough for the kernel however deep the directory is."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/control"
    finally:
        os.close(fd)


class Registration:
    """An enclave's own place in the registry; made and kept by its process.

    Args:
        wanted: The entry without its name; ``cid`` 0 gets a free one.
        name: What it is to be called; `None`: the image's file name without .eif, or with a number.

    Raises:
        UsageError: The name or the CID is taken by one that runs.
        HostError: The directory cannot be made.
    """

    def __init__(self, wanted: Entry, name: str | None) -> None:
        base = runtime_directory()
        with _registry_lock():
            for half_made in base.glob(".new-*"):  # of a process that was killed here
                shutil.rmtree(half_made, ignore_errors=True)
            running = {entry.name: entry for entry in entries() if alive(entry)}
            self.entry = replace(
                wanted, name=_choose_name(name, wanted.image, running), cid=_choose_cid(wanted.cid, running)
            )
            """What the registry shows."""
            self.directory = base / self.entry.name
            """Where the enclave's files are."""
            try:
                made = Path(tempfile.mkdtemp(prefix=".new-", dir=base))
                self._lock = os.open(made / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                _write(made, self.entry)
                shutil.rmtree(self.directory, ignore_errors=True)  # of one that has ended
                made.rename(self.directory)
            except OSError as error:
                raise HostError(f"{base}: {error.strerror}", code="M14") from error

    def update(self, **changes: Any) -> None:  # noqa: ANN401 - fields of `Entry`
        """Change the entry; a disk that is full changes nothing."""
        self.entry = replace(self.entry, **changes)
        with suppress(OSError):
            _write(self.directory, self.entry)

    def close(self, *, forget: bool = False) -> None:
        """The process is about to end."""
        with suppress(OSError):
            (self.directory / "control").unlink(missing_ok=True)
        if forget:
            shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)


def _choose_name(name: str | None, image: str, running: dict[str, Entry]) -> str:
    if name is not None:
        if name in running:
            raise UsageError(
                f"there is an enclave {name}, and it is running",
                hint=f"give another --name, or: vmm stop {name}",
                code="M12",
            )
        return name
    stem = Path(image).name.removesuffix(".eif")
    letters = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "_.-") else "_" for letter in stem
    )
    first = letters.lstrip(".-")[:56] or "enclave"
    candidate, number = first, 0
    while candidate in running:  # as nitro-cli counts
        number += 1
        candidate = f"{first}_{number}"
    return candidate


def _choose_cid(cid: int, running: dict[str, Entry]) -> int:
    taken = {entry.cid for entry in running.values()}
    if cid in taken:
        raise UsageError(
            f"the CID {cid} is taken by an enclave that runs", hint="give another --cid, or 0", code="M12"
        )
    while not cid:
        cid = next(free for free in range(CID_DEFAULT, 1 << 32) if free not in taken)
    return cid


@contextmanager
def _registry_lock() -> Iterator[None]:
    fd = os.open(runtime_directory() / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write(directory: Path, entry: Entry) -> None:
    new = directory / "state.json.new"
    new.write_text(json.dumps(asdict(entry)))
    new.replace(directory / "state.json")


def _look(directory: Path) -> Entry | None:
    """The entry of a directory, with what the kernel says about its process; `None` if it is none."""
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # By its descriptor it stays the same directory, even if another enclave of this name takes its place.
        # Otherwise the state could be of one that has ended, and the lock of that which runs.
        entry = _read(Path(f"/proc/self/fd/{fd}"))
    except (OSError, ValueError, TypeError):
        return None
    finally:
        os.close(fd)
    return replace(entry, name=directory.name)


def _read(directory: Path) -> Entry:
    entry = _state(directory)
    gone = not _is_locked(directory / "lock")
    if gone and alive(entry):
        entry = _state(directory)  # it may have ended after the state was read
        if alive(entry):
            entry = replace(entry, status=KILLED)
            _tidy(directory, entry)
    return entry


def _state(directory: Path) -> Entry:
    with (directory / "state.json").open("rb") as file:
        return Entry(**json.loads(file.read(STATE_BYTES_MAX)))


def _is_locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return True
        raise
    finally:
        os.close(fd)
    return False


def _tidy(directory: Path, entry: Entry) -> None:
    """Remove the sockets of a process that was killed."""
    (directory / "control").unlink(missing_ok=True)
    for path in map(Path, entry.sockets):
        with suppress(OSError):
            if stat.S_ISSOCK(path.lstat().st_mode) and not _answers(path):
                path.unlink()


def _answers(path: Path) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(path))
            except ConnectionRefusedError:
                continue
            except OSError as error:
                if error.errno == errno.EPROTOTYPE:
                    continue
            return True
    return False
