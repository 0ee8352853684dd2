"""The library of ours that lies in front of Unicorn: loads it, and proves that it is in force.

``packages/vmm/native`` has its source, and ``native/table.h`` what it replaces. It must be loaded before
Unicorn is, so this module comes before the first use of `public` in the package. Where it cannot be used,
`LIBRARY` is `None` and `MISSING` says why; the guest then runs with hooks in Python.
"""

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Final

from nitro_vmm.accel.unicorn import public
from nitro_vmm.accel.unicorn.library import Library

VERSION: Final = 4
"""Of the library's interface, as in ``native/library.c``."""
PATH: Final = Path(__file__).with_name("libnitro.so")
SOURCES: Final = Path(__file__).parents[4] / "native"
"""Where its sources are in a checkout; an installed wheel has none."""


def is_stale(library: Path, sources: Path) -> bool:
    """Whether a checkout's sources were changed after its library was built.

    The two share structures, so a library of other sources could crash the process.
    """
    changed = [path.stat().st_mtime for path in sources.glob("*.[ch]")]
    return bool(changed) and max(changed) > library.stat().st_mtime


def _load() -> tuple[Library | None, str]:
    if not PATH.exists():
        return None, "it was not built"
    if is_stale(PATH, SOURCES):
        return None, f"it is older than its sources; install again: pip install -e {SOURCES.parent}"
    if "unicorn" in sys.modules:
        return None, "Unicorn was imported before it"
    try:
        library = Library(PATH)
    except (OSError, AttributeError) as error:
        return None, f"it cannot be loaded: {error}"
    if library.version() != VERSION:
        return None, f"it is of another build ({library.version()}, not {VERSION}); install nitro-vmm again"
    if not library.supported():
        return None, "the host's processor has no SSE4.2"
    return _connect(library)


def _connect(library: Library) -> tuple[Library | None, str]:
    """Give the library the functions that it replaces, and see whether Unicorn calls it instead."""
    unicorn = public.library()  # after ours
    number = 0
    while name := library.symbol(number):
        try:
            original = unicorn[name.decode()]
        except AttributeError:
            return None, f"this Unicorn has no {name.decode()}"
        library.set_original(number, ctypes.cast(original, ctypes.c_void_p).value)
        number += 1
    if name := library.not_in_force(unicorn._handle):  # noqa: SLF001 - what dlopen returned
        return None, f"this Unicorn does not call its {name.decode()}"
    from nitro_vmm.accel.unicorn.proof import ADDRESS_SPACE_BYTES, prove  # noqa: PLC0415 - of no use before

    try:  # because Unicorn ends the process when it has not enough
        mmap.mmap(-1, ADDRESS_SPACE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0).close()
    except OSError:
        return None, "there is no address space to try it in"
    if wrong := prove(library):
        return None, f"it computes wrongly: {wrong}; install nitro-vmm again"
    return library, ""


LIBRARY, MISSING = _load()
