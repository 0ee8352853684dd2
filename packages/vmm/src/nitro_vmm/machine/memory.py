"""The guest's RAM."""

import ctypes
import mmap
import os
from typing import Final

from nitro_vmm.accel import Ram
from nitro_vmm.address_map import RamRange, ram_ranges
from nitro_vsock import GuestMemory

MAP_FIXED: Final = 0x10
MMAP: Final = ctypes.CDLL(None, use_errno=True).mmap
"""mmap(2), because Python's own cannot map a file into memory that is there already."""
MMAP.restype = ctypes.c_size_t
MMAP.argtypes = (ctypes.c_size_t, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)


class Memory:
    """RAM, anonymous or of a file that other processes can map.

    Args:
        memory_bytes: How much.
        fd: The file, which has that size; -1 for anonymous memory.
        huge: Ask for huge pages, which a booting guest fills faster. A guest that goes on from saved memory
            writes here and there, and would take much more memory with them.
    """

    def __init__(self, memory_bytes: int, *, fd: int = -1, huge: bool = True) -> None:
        self.ranges: tuple[RamRange, ...] = ram_ranges(memory_bytes)
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
        if fd < 0 and huge:
            for buffer in self._buffers:
                buffer.madvise(mmap.MADV_HUGEPAGE)
        self.guest: GuestMemory = GuestMemory(
            (address, memoryview(buffer))
            for (address, _), buffer in zip(self.ranges, self._buffers, strict=True)
        )
        """The memory as devices and the loader use it."""

    def map_private(self, fd: int, *, address: int, offset: int, length: int) -> None:
        """Let a stretch of the memory begin as a part of a file, and share it until the guest writes there.

        Before anything has run. What was there is lost.

        Args:
            fd: The file; it must not change while the memory is used.
            address: Where the stretch is in the guest's physical memory; a page's beginning, like `offset`.
            offset: Where the part is in the file.
            length: How long both are, whole pages.

        Raises:
            OSError: The host refuses.
            ValueError: The stretch is not in RAM.
        """
        for (start, size), buffer in zip(self.ranges, self._buffers, strict=True):
            if start <= address and address + length <= start + size:
                place = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) + address - start
                access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | MAP_FIXED
                if MMAP(place, length, access, flags, fd, offset) != place:
                    error = ctypes.get_errno()
                    raise OSError(error, os.strerror(error))
                return
        raise ValueError(f"{length:#x} bytes at {address:#x} are not in one stretch of RAM")

    @property
    def ram(self) -> Ram:
        """The memory as an accelerator uses it."""
        return list(zip(self.ranges, self._buffers, strict=True))
