"""Writes saved machines into files, and maps them."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from nitro_vmm.accel import VmState
from nitro_vmm.boot.ram import Proceed, nothing
from nitro_vmm.errors import HostError, StateError
from nitro_vmm.machine.memory import Memory
from nitro_vmm.snapshot.codec import encode, made, parsed
from nitro_vmm.snapshot.digest import FileDigest
from nitro_vmm.snapshot.layout import (
    HEADER,
    PAGE_BYTES,
    Description,
    Header,
    Parameters,
    check_pages,
    make_header,
    pack_header,
    parse_header,
    pieces,
)

CHUNK_PAGES: Final = 256
GAP_PAGES_MAX: Final = 16
"""So many pages of zeros are kept where others surround them, because each stretch takes a mapping of its
own, and Linux allows a process 65,530 of them."""


def write(file: BinaryIO, description: Description, memory: Memory) -> None:
    """Write a saved machine into an empty file.

    Args:
        file: Where to.
        description: All but its extents, which are found here.
        memory: The guest's, which stands still.

    Raises:
        OSError: It cannot be written.
    """
    description = description._replace(extents=tuple(_extents(memory)))
    encoded = encode(description)
    header = make_header(len(encoded), sum(count for _, count in description.extents))
    padding = bytes(header.pages_offset - HEADER.size - len(encoded))
    file.seek(0)
    file.write(pack_header(header) + encoded + padding)
    file.writelines(_parts(description, memory))
    file.flush()
    header = header._replace(digest=_digest(file, header.file_bytes))
    file.seek(0)
    file.write(pack_header(header))


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is there, whole and for its user only, when the block ends well; and not at all otherwise.

    Raises:
        HostError: It cannot be written.
    """
    if path.is_dir():  # the empty path is one, too, and has no name
        raise HostError(f"{path} is a directory", hint="give the path of a file")
    new = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "r+b") as file:
            yield file
            file.flush()
        new.replace(path)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)


class Saved(NamedTuple):
    """A saved machine whose file is open, and whole."""

    file: BinaryIO
    """The file; close it when the memory is not used any more."""
    header: Header
    description: Description

    def load(self, memory: Memory) -> None:
        """Map the file over a machine's memory, which is all zeros; what the guest writes is its own.

        Args:
            memory: As large as the saved one.

        Raises:
            HostError: The host refuses.
        """
        for address, at, length in pieces(self.description):
            offset = self.header.pages_offset + at
            try:
                memory.map_private(self.file.fileno(), address=address, offset=offset, length=length)
            except OSError as error:
                raise HostError(f"the saved machine's memory: {error.strerror}") from error


def read(
    file: BinaryIO,
    accelerator: str,
    vm_state: type[VmState],
    proceed: Proceed = nothing,
    *,
    digest: FileDigest | None = None,
) -> Saved:
    """Read a saved machine, and see that it is whole.

    Args:
        file: The file; only its owner may write it, because a guest goes on from what is in it.
        accelerator: The name of the one that is to run it.
        vm_state: The class of its state.
        proceed: See `Proceed`.
        digest: That of this very file, where somebody has begun to compute it.

    Raises:
        StateError: It is none, is damaged, of another accelerator, or others may write it.
        OSError: It cannot be read.
    """
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise StateError("this is no saved machine, but a device or a pipe")
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        raise StateError("others may write the saved machine", hint="chmod go-w, if you trust what it holds")
    header = parse_header(os.pread(file.fileno(), HEADER.size, 0), file_bytes=status.st_size)
    if digest is None or digest.file_bytes != status.st_size:
        computed = _digest(file, status.st_size, proceed)
    else:
        computed = digest.result(proceed)
    if computed != header.digest:
        raise StateError("the saved machine is damaged: its digest is not the one that it says")
    encoded = os.pread(file.fileno(), header.description_bytes, HEADER.size)
    extended: Mapping[type, type] = {VmState: vm_state}
    plain = parsed(encoded)
    if isinstance(plain, dict):  # else it is refused below
        ran_on = made(plain.get("parameters"), Parameters).accelerator
        if ran_on != accelerator:
            raise StateError(
                f"the saved machine ran on {ran_on}, not {accelerator}", hint=f"--accel {ran_on}"
            )
    description = made(plain, Description, extended=extended)
    check_pages(header, description)
    return Saved(file, header, description)


def _digest(file: BinaryIO, file_bytes: int, proceed: Proceed = nothing) -> bytes:
    with closing(FileDigest(file, file_bytes)) as digest:
        return digest.result(proceed)


def _parts(description: Description, memory: Memory) -> Iterator[memoryview]:
    for address, _, length in pieces(description):
        yield memory.guest.slice(address, length)


def _extents(memory: Memory) -> Iterator[tuple[int, int]]:
    """The runs of pages that are not zero; short runs of zeros between them are part of them."""
    run = range(0)
    for page in _filled(memory):
        if run and page - run.stop <= GAP_PAGES_MAX:
            run = range(run.start, page + 1)
            continue
        if run:
            yield run.start, len(run)
        run = range(page, page + 1)
    if run:
        yield run.start, len(run)


def _filled(memory: Memory) -> Iterator[int]:
    base = 0
    zeros = bytes(CHUNK_PAGES * PAGE_BYTES)
    is_zero: Callable[[bytes], bool] = zeros.startswith
    for (_, size), buffer in memory.ram:
        for at in range(0, size, len(zeros)):
            chunk = buffer[at : min(at + len(zeros), size)]
            if is_zero(chunk):
                continue
            for offset in range(0, len(chunk), PAGE_BYTES):
                if not is_zero(chunk[offset : offset + PAGE_BYTES]):
                    yield (base + at + offset) // PAGE_BYTES
        base += size
