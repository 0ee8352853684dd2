"""The bank of platform configuration registers.

There are 32 registers of 48 bytes. The hypervisor fills and locks the first 16 before the enclave starts; the
enclave may extend the others until it locks them. A locked register never changes again, and only locked
registers appear in attestation documents.
"""

import hashlib
from collections.abc import Collection, Iterable

from nitro_nsm.errors import ErrorCode, Refusal

PCR_COUNT = 32
PCR_BYTES = 48
"""A register holds a SHA-384 digest."""
LOCKED_AT_START = 16
ZERO = bytes(PCR_BYTES)


def extended(value: bytes, data: bytes) -> bytes:
    """What a register that holds `value` holds after it was extended with `data`."""
    return hashlib.sha384(value + data).digest()


class PcrBank:
    """The registers and their locks. A request that is refused changes neither.

    Args:
        values: The values of all registers, in order.
        locked: The indexes of the locked ones.
    """

    def __init__(self, values: Iterable[bytes], locked: Collection[int]) -> None:
        self._values = list(values)
        self._locked = [index in locked for index in range(PCR_COUNT)]

    def describe(self, index: int) -> tuple[bytes, bool]:
        """The value of a register, and whether it is locked.

        Raises:
            Refusal: InvalidIndex.
        """
        self._check(index)
        return self._values[index], self._locked[index]

    def extend(self, index: int, data: bytes) -> bytes:
        """Extend a register, and return its new value.

        Raises:
            Refusal: InvalidIndex, or ReadOnlyIndex if it is locked.
        """
        self._check_writable(index)
        self._values[index] = extended(self._values[index], data)
        return self._values[index]

    def lock(self, index: int) -> None:
        """Lock one register.

        Raises:
            Refusal: InvalidIndex, or ReadOnlyIndex if it is locked already.
        """
        self._check_writable(index)
        self._locked[index] = True

    def lock_range(self, count: int) -> None:
        """Lock the first `count` registers; those that are locked already stay so.

        Raises:
            Refusal: InvalidIndex.
        """
        if count > PCR_COUNT:
            raise Refusal(ErrorCode.INVALID_INDEX, f"{count} registers of {PCR_COUNT}")
        self._locked[:count] = [True] * count

    def values(self) -> tuple[bytes, ...]:
        """The value of every register, in order."""
        return tuple(self._values)

    def locked(self) -> dict[int, bytes]:
        """The locked registers, in ascending order."""
        return {index: self._values[index] for index in range(PCR_COUNT) if self._locked[index]}

    def _check(self, index: int) -> None:
        if index >= PCR_COUNT:
            raise Refusal(ErrorCode.INVALID_INDEX, f"there is no PCR{index}")

    def _check_writable(self, index: int) -> None:
        self._check(index)
        if self._locked[index]:
            raise Refusal(ErrorCode.READ_ONLY_INDEX, f"PCR{index} is locked")
