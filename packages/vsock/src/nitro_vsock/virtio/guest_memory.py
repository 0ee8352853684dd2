"""The guest's physical memory as a device sees it: regions of the host's memory, with holes between them."""

import itertools
from collections.abc import Iterable

from nitro_vsock.errors import GuestMemoryError, UsageError


class GuestMemory:
    """A guest-physical address space over writable views of host memory.

    Args:
        regions: Guest-physical address and view of each region. A view is writable and of bytes
            (format ``B``).

    Raises:
        UsageError: A view is read-only or not of bytes, or two regions overlap.
    """

    def __init__(self, regions: Iterable[tuple[int, memoryview]]) -> None:
        placed = sorted(((start, start + len(view), view) for start, view in regions), key=lambda r: r[0])
        for _, _, view in placed:
            if view.readonly or view.format != "B" or not view.c_contiguous or view.ndim != 1:
                raise UsageError("a region of guest memory must be a writable, contiguous view of bytes")
        for (start, end, _), (following, _, _) in itertools.pairwise(placed):
            if following < end:
                raise UsageError(f"the regions at {start:#x} and {following:#x} of guest memory overlap")
        self.regions: tuple[tuple[int, int, memoryview], ...] = tuple(
            sorted(placed, key=lambda region: region[0] - region[1])
        )
        """First address, address behind the last, view. The largest comes first: most buffers are there."""

    def slice(self, address: int, length: int) -> memoryview:
        """The ``length`` bytes at guest-physical ``address``, as a view and not a copy.

        Raises:
            GuestMemoryError: The range is not wholly inside one region.
        """
        if length >= 0:
            for start, end, view in self.regions:
                if start <= address and address + length <= end:
                    return view[address - start : address - start + length]
        raise GuestMemoryError(address, length)
