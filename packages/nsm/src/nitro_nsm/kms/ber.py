"""The little of BER that an envelope needs: values of definite and of indefinite length (X.690 §8.1).

Only tags of one byte are known, because CMS has no others.
"""

from typing import TypeAlias

Node: TypeAlias = "tuple[int, bytes | list[Node]]"
"""A tag, and either the contents of a primitive value or the values in a constructed one."""

OBJECT_IDENTIFIER, OCTET_STRING, INTEGER, SEQUENCE, SET = 0x06, 0x04, 0x02, 0x30, 0x31
CONTEXT_0, CONTEXT_0_CONSTRUCTED, CONTEXT_1_CONSTRUCTED = 0x80, 0xA0, 0xA1
CONSTRUCTED = 0x20
INDEFINITE = 0x80
END_OF_CONTENTS = b"\0\0"
LONG_TAG = 0x1F

DEPTH_MAX = 16
"""How deep values may nest; an envelope nests eight deep."""


def der(tag: int, *contents: bytes) -> bytes:
    """Encode a value of definite length."""
    body = b"".join(contents)
    if len(body) < INDEFINITE:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, INDEFINITE | len(length)]) + length + body


def stream(tag: int, *contents: bytes) -> bytes:
    """Encode a constructed value of indefinite length."""
    return bytes([tag, INDEFINITE]) + b"".join(contents) + END_OF_CONTENTS


def read(data: bytes) -> Node:
    """Decode the one value that `data` is.

    Raises:
        ValueError: It is cut short, nests too deep, or something follows it.
    """
    node, end = _value(data, 0, len(data), 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes follow the value")
    return node


def _value(data: bytes, start: int, end: int, depth: int) -> tuple[Node, int]:
    """The value at `start`, which must end at `end` at the latest, and where it ends."""
    if depth > DEPTH_MAX:
        raise ValueError(f"nested deeper than {DEPTH_MAX}")
    if end - start < 2:
        raise ValueError(f"cut short at byte {start:#x}")
    tag, length, start = data[start], data[start + 1], start + 2
    if tag & LONG_TAG == LONG_TAG:
        raise ValueError(f"a tag of several bytes at byte {start - 2:#x}")
    if length == INDEFINITE:
        if not tag & CONSTRUCTED:
            raise ValueError(f"a primitive value without a length at byte {start - 2:#x}")
        return _until_end_of_contents(data, tag, start, end, depth)
    if length > INDEFINITE:
        width = length & ~INDEFINITE
        if width > 4 or end - start < width:
            raise ValueError(f"a length that cannot be at byte {start - 1:#x}")
        length, start = int.from_bytes(data[start : start + width], "big"), start + width
    if length > end - start:
        raise ValueError(f"cut short at byte {start:#x}: {length} bytes wanted, {end - start} left")
    if not tag & CONSTRUCTED:
        return (tag, data[start : start + length]), start + length
    found, stop = list[Node](), start + length
    while start < stop:
        node, start = _value(data, start, stop, depth + 1)
        found.append(node)
    return (tag, found), stop


def _until_end_of_contents(data: bytes, tag: int, start: int, end: int, depth: int) -> tuple[Node, int]:
    found = list[Node]()
    while data[start : start + 2] != END_OF_CONTENTS:
        node, start = _value(data, start, end, depth + 1)
        found.append(node)
    if start + 2 > end:
        raise ValueError(f"the end of a value lies beyond what holds it, at byte {start:#x}")
    return (tag, found), start + 2
