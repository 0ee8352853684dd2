"""Gives the host's memory back that holds code which an enclave needed only to start.

Libraries are mapped files, and most of their pages are touched once while they are loaded. They count as this
process's memory from then on, some 25 MiB, although a running enclave uses few of them. Given back, they stay
in the host's page cache, and those that are used again are mapped again within microseconds.

A library that another thread is loading just then must be left alone, because what looks like an unused part
of a file may be about to become its variables. So only what was mapped already when the enclave came to run
is given back, after its heartbeat and some time. Libraries that were loaded are not unloaded.
"""

import ctypes
import mmap
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from nitro_vmm.enclave.enclave import Enclave
from nitro_vmm.enclave.outcome import EnclaveEndedError

SETTLED_S: Final = 1.0
"""How long after the heartbeat an enclave has started what it starts, seconds."""
MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-([x-])p .*\.so\b[^/]*$")
"""A mapping of a library that nobody may write to, in what Linux shows of a process."""

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)


async def give_back_when_settled(enclave: Enclave) -> None:
    """Wait until an enclave has started, and give back the code that it does not need any more."""
    before = mappings()
    with suppress(EnclaveEndedError, OSError):
        await enclave.booted()
        await trio.sleep(SETTLED_S)
        await trio.to_thread.run_sync(give_back, before, abandon_on_cancel=True)


def mappings() -> frozenset[str]:
    """What is mapped in this process, as Linux shows it (proc_pid_maps(5)); empty where it shows nothing."""
    with suppress(OSError):
        return frozenset(Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines())
    return frozenset()


def give_back(before: frozenset[str]) -> None:
    """Let this process have none of the code that it does not run just now.

    Args:
        before: What `mappings` returned some time ago.

    Raises:
        OSError: The process's mappings cannot be read.
    """
    smaps = Path("/proc/self/smaps").read_text(errors="surrogateescape")
    for start, length in unchanged(smaps, before):
        _libc.madvise(start, length, mmap.MADV_DONTNEED)


def unchanged(smaps: str, before: frozenset[str]) -> Iterator[tuple[int, int]]:
    """The mappings of libraries of which the file has all.

    Args:
        smaps: What Linux shows of a process (proc_pid_smaps(5)).
        before: What `mappings` returned some time ago.

    Yields:
        Address and length of each, bytes.
    """
    place: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if line in before and (mapping := MAPPING.match(line)) is not None:
            start, end = (int(address, 16) for address in mapping.groups()[:2])
            place = (start, end - start)
        elif place is not None and line.startswith("Anonymous:"):
            # Pages that were written, such as those with addresses that the loader has put in, or a
            # debugger's breakpoints, are of the process alone.
            if line.split()[1] == "0":
                yield place
            place = None
