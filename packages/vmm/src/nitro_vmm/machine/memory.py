"""The guest's RAM."""

import mmap

from nitro_vmm.accel import Ram
from nitro_vmm.address_map import ram_ranges
from nitro_vsock import GuestMemory


class Memory:
    """RAM, anonymous or of a file that other processes can map.

    Args:
        memory_bytes: How much.
        fd: The file, which has that size; -1 for anonymous memory.
    """

    def __init__(self, memory_bytes: int, *, fd: int = -1) -> None:
        self.ranges = ram_ranges(memory_bytes)
        """Where it lies in the guest's physical memory."""
        offsets, position = [], 0
        for _, size in self.ranges:
            offsets.append(position)
            position += size
        flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._buffers = [
            mmap.mmap(fd, size, flags=flags, offset=0 if fd < 0 else offset)
            for (_, size), offset in zip(self.ranges, offsets, strict=True)
        ]
        if fd < 0:
            for buffer in self._buffers:
                buffer.madvise(mmap.MADV_HUGEPAGE)
        self.guest = GuestMemory(
            (address, memoryview(buffer))
            for (address, _), buffer in zip(self.ranges, self._buffers, strict=True)
        )
        """The memory as devices and the loader use it."""

    @property
    def ram(self) -> Ram:
        """The memory as an accelerator uses it."""
        return list(zip(self.ranges, self._buffers, strict=True))
