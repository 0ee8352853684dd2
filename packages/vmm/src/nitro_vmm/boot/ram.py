"""What the loader needs of the guest's memory, and the types of what it loads."""

from typing import Protocol, TypeAlias

Bytes: TypeAlias = bytes | bytearray | memoryview
"""Part of an image: may be a view of a mapped file, and is never copied but into RAM."""


class Ram(Protocol):
    """The guest's RAM, zero-filled, as :func:`nitro_vmm.address_map.ram_ranges` says.

    ``nitro_vsock.GuestMemory`` is one.
    """

    def slice(self, address: int, length: int) -> memoryview:
        """The ``length`` bytes at guest-physical ``address``: writable, and inside one region of RAM."""
        ...
