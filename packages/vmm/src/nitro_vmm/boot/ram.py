"""What the loader needs of the guest's memory, and the types of what it loads."""

from typing import Protocol, TypeAlias

Bytes: TypeAlias = bytes | bytearray | memoryview
"""Part of an image. It may be a view of a mapped file, so the loader copies it once only, into RAM."""


class Ram(Protocol):
    """The guest's RAM, full of zeros, in the ranges that `nitro_vmm.address_map.ram_ranges` gives.

    `nitro_vsock.GuestMemory` is an implementation.
    """

    def slice(self, address: int, length: int) -> memoryview:
        """The ``length`` bytes at guest-physical ``address``: writable, and inside one region of RAM."""
        ...
