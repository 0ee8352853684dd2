"""The guest's memory as a front-end shares it: files, of which parts are mapped here.

A region is known by two addresses: the guest's physical one, which descriptors hold, and the front-end's own,
which SET_VRING_ADDR holds. Mappings end when the last view of them is dropped, not before: a queue that still
runs on an old table never loses the memory under its feet.
"""

import contextlib
import fcntl
import mmap
import os
import stat

from nitro_vsock.vhost_user.errors import RefusedError
from nitro_vsock.vhost_user.messages import MemoryRegion
from nitro_vsock.virtio.guest_memory import GuestMemory

ADDRESS_LIMIT = 1 << 64


def map_region(region: MemoryRegion, descriptor: int) -> memoryview:
    """Map what a front-end shares; ``descriptor`` may be closed afterwards.

    Raises:
        RefusedError: The region is empty, reaches beyond the file or the address space, or cannot be mapped.
    """
    if not region.size:
        raise RefusedError(f"{region}: it is empty")
    if max(region.guest_address, region.frontend_address) + region.size > ADDRESS_LIMIT:
        raise RefusedError(f"{region}: it reaches beyond 64-bit addresses")
    end = region.file_offset + region.size
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(f"{region}: what came with it is not a file")
        if status.st_size < end:
            raise RefusedError(f"{region}: its file has {status.st_size:#x} bytes, {end:#x} are needed")
        # A file that shrinks later would kill this process with SIGBUS. A memfd can promise not to.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        # Mapped from the file's start, because huge pages want larger alignments than the system says.
        mapping = mmap.mmap(descriptor, end, mmap.MAP_SHARED)
    except (OSError, ValueError, OverflowError) as error:
        raise RefusedError(f"{region}: cannot map it: {error}") from error
    return memoryview(mapping)[region.file_offset : end]


class MemoryMap:
    """The regions of one session, mapped."""

    def __init__(self) -> None:
        self._regions: dict[MemoryRegion, memoryview] = {}

    def __len__(self) -> int:
        return len(self._regions)

    def add(self, region: MemoryRegion, view: memoryview) -> None:
        """Add one region.

        Raises:
            RefusedError: It overlaps one that is there, in the guest's or in the front-end's addresses.
        """
        for other in self._regions:
            for here, there in (
                (region.guest_address, other.guest_address),
                (region.frontend_address, other.frontend_address),
            ):
                if here < there + other.size and there < here + region.size:
                    raise RefusedError(f"{region} overlaps {other}")
        self._regions[region] = view

    def remove(self, region: MemoryRegion) -> None:
        """Forget one region; the file's offset does not count, as the specification says.

        Raises:
            RefusedError: There is none such.
        """
        for known in self._regions:
            if known[:3] == region[:3]:
                del self._regions[known]
                return
        raise RefusedError(f"{region} was never added, or with another size or front-end address")

    def guest_memory(self) -> GuestMemory:
        """All regions at the addresses where the guest sees them."""
        return GuestMemory((region.guest_address, view) for region, view in self._regions.items())

    def guest_address(self, frontend_address: int) -> int:
        """What the guest calls an address of the front-end.

        Raises:
            RefusedError: No region holds it.
        """
        for region in self._regions:
            offset = frontend_address - region.frontend_address
            if 0 <= offset < region.size:
                return region.guest_address + offset
        raise RefusedError(f"the front-end's address {frontend_address:#x} is in no region of guest memory")
