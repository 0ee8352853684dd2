"""What the loader needs of the guest's memory, and the types of what it loads."""

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

Bytes: TypeAlias = bytes | bytearray | memoryview
"""Part of an image. It may be a view of a mapped file, so the loader copies it once only, into RAM."""

COPY_BYTES: Final = 16 << 20
"""How much is copied at once, which takes some milliseconds."""

Proceed: TypeAlias = Callable[[], None]
"""Called every some milliseconds of long work. What it raises ends the work."""


class Ram(Protocol):
    """The guest's RAM, full of zeros, in the ranges that `nitro_vmm.address_map.ram_ranges` gives.

    `nitro_vsock.GuestMemory` is an implementation.
    """

    def slice(self, address: int, length: int) -> memoryview:
        """The ``length`` bytes at guest-physical ``address``: writable, and inside one region of RAM."""
        ...


def nothing() -> None:
    """Let long work go on, as `Proceed`."""


def copy(ram: Ram, address: int, data: Bytes, proceed: Proceed = nothing) -> None:
    """Copy into RAM at a guest-physical address.

    Args:
        ram: The guest's.
        address: Where to; all of it in one region.
        data: What.
        proceed: Called between pieces.
    """
    view = memoryview(data)
    for start in range(0, len(view), COPY_BYTES):
        proceed()
        piece = view[start : start + COPY_BYTES]
        ram.slice(address + start, len(piece))[:] = piece
