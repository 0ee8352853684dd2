"""Writes to a port that the kernel collects, so that not each of them has to come back from the guest.

A guest prints by writing one byte after the other to a port. The kernel puts such writes into a ring that it
shares with this process, and goes on with the guest. They are read from there at the next exit for another
reason, before that is answered, so a device sees everything in the guest's order.

Source: Linux, Documentation/virt/kvm/api.rst, "KVM_REGISTER_COALESCED_MMIO", and ``struct
kvm_coalesced_mmio_ring`` of include/uapi/linux/kvm.h.
"""

import mmap
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

# struct kvm_coalesced_mmio_ring: first last, then struct kvm_coalesced_mmio: phys_addr len pio data
INDICES: Final = struct.Struct("<II")
ENTRY: Final = struct.Struct("<QII8s")
PAGE_BYTES: Final = 4096
ENTRIES: Final = (PAGE_BYTES - INDICES.size) // ENTRY.size


class Write(NamedTuple):
    """A write to a port."""

    port: int
    size: int
    """Bytes."""
    value: int


class CollectedWrites:
    """The ring of one machine.

    Args:
        shared: The memory that a processor shares with the kernel; all processors have the same ring there.
        place: Where the ring begins in it.
    """

    def __init__(self, shared: mmap.mmap | bytearray, place: int) -> None:
        self._shared = shared
        self._place = place

    def __bool__(self) -> bool:
        """Whether there are any; may be asked by any thread."""
        first, last = INDICES.unpack_from(self._shared, self._place)
        return bool(first != last)

    def take(self) -> Iterator[Write]:
        """All that there are, oldest first; by one thread at a time."""
        first, last = INDICES.unpack_from(self._shared, self._place)
        while first != last:
            place = self._place + INDICES.size + first % ENTRIES * ENTRY.size
            port, size, _, data = ENTRY.unpack_from(self._shared, place)
            yield Write(port, size, int.from_bytes(data[:size], "little"))
            first = (first + 1) % ENTRIES
            # Only now may the kernel use the entry again. It never writes the first index.
            struct.pack_into("<I", self._shared, self._place, first)
