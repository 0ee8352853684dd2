"""The checksum that firmware tables share."""


def checksum(table: bytes | bytearray) -> int:
    """The byte that makes a table, in which it is 0 so far, add up to 0 modulo 256."""
    return -sum(table) & 0xFF
