"""A strict decoder for the little CBOR that the Nitro Secure Module speaks (RFC 8949).

Requests come from a guest and documents from anywhere, so nothing is trusted: a length is compared with the
bytes that are left before anything is allocated for it, nesting is bounded, a key may appear only once, and
nothing may follow the item. Tags, floats, indefinite-length strings, and simple values other than
false, true and null appear in neither requests nor documents and are refused.

Two rules differ from place to place. A request's lengths and integers may be written longer than needed,
because clients in C do so; a document's may not. The maps and arrays of a document's payload may be of
indefinite length, because the hardware's top-level map is so since 2025 and others may follow. That harms
nobody, because the payload's bytes are signed as they are. Around the payload and in requests it is refused.
"""

from typing import TypeAlias

from nitro_nsm.errors import CborError

Value: TypeAlias = "int | bytes | str | bool | list[Value] | dict[int | str, Value] | None"

DEPTH_MAX = 4
"""Requests and documents nest two deep (map, map, bytes); the rest is for unknown fields that are ignored."""
INDEFINITE_ARRAY, INDEFINITE_MAP = 0x9F, 0xBF
BREAK = b"\xff"
SIMPLE: dict[int, bool | None] = {0xF4: False, 0xF5: True, 0xF6: None}


class Decoder:
    """Reads one item.

    Args:
        data: The bytes to read from.
        strict: Lengths and integers must be as short as they can be.
        indefinite: Maps and arrays may be of indefinite length.
    """

    def __init__(self, data: bytes, *, strict: bool, indefinite: bool = False) -> None:
        self.data = data
        self.strict = strict
        self.indefinite = indefinite
        self.offset = 0
        """The next byte to read."""

    def item(self, depth: int = 0) -> Value:
        """Decode the item at `offset`, which is nested in `depth` others.

        Raises:
            CborError: It is not allowed, or cut short.
        """
        if depth > DEPTH_MAX:
            raise self.error(f"nested deeper than {DEPTH_MAX}")
        start = self.offset
        initial = self._byte()
        if initial in SIMPLE:
            return SIMPLE[initial]
        if self.indefinite and initial == INDEFINITE_MAP:
            return self._map(None, depth)
        if self.indefinite and initial == INDEFINITE_ARRAY:
            return self._array(depth)
        # The upper three bits are the major type, the lower five its argument or how that is written (§3).
        major = initial >> 5
        if major > 5:
            raise self.error("a tag, a float or a simple value", start)
        argument = self._argument(initial & 0x1F, start)
        if major == 0:
            return argument
        if major == 1:
            return -1 - argument
        # What is left is as long as its argument says. Each byte or element takes at least one byte of data,
        # so a length beyond the data is refused here, before any memory is spent on it.
        left = len(self.data) - self.offset
        if argument > left:
            raise self.error(f"a length of {argument}, but {left} bytes are left", start)
        if major == 2:
            return self._take(argument)
        if major == 3:
            try:
                return self._take(argument).decode()
            except UnicodeDecodeError:
                raise self.error("text that is not UTF-8", start) from None
        if major == 4:
            return [self.item(depth + 1) for _ in range(argument)]
        return self._map(argument, depth)

    def error(self, message: str, offset: int | None = None) -> CborError:
        """The error to raise about the byte at `offset`, or about the next one."""
        return CborError(message, offset=self.offset if offset is None else offset)

    def _array(self, depth: int) -> Value:
        """Read the elements of an array up to its break."""
        found: list[Value] = []
        while not self._at_break():
            found.append(self.item(depth + 1))
        return found

    def _at_break(self) -> bool:
        """Whether a break comes next; if so, step over it."""
        if self.data[self.offset : self.offset + 1] != BREAK:
            return False
        self.offset += 1
        return True

    def _map(self, count: int | None, depth: int) -> Value:
        """Read the entries of a map; without a `count` they end with a break."""
        found: dict[int | str, Value] = {}
        while count is None or len(found) < count:
            if count is None and self._at_break():
                break
            start = self.offset
            key = self.item(depth + 1)
            # Python takes True for the integer 1, and CBOR does not.
            if not isinstance(key, int | str) or isinstance(key, bool):
                raise self.error("a map key that is neither text nor a number", start)
            if key in found:
                raise self.error(f"the map key {key!r} a second time", start)
            found[key] = self.item(depth + 1)
        return found

    def _argument(self, information: int, start: int) -> int:
        if information < 24:
            return information
        if information > 27:
            raise self.error("an indefinite or reserved length", start)
        width = 1 << (information - 24)
        argument = int.from_bytes(self._take(width), "big")
        # One byte is needed from 24 on, and a next width where half of it no longer suffices (§4.2.1).
        if self.strict and argument < (24 if width == 1 else 1 << 4 * width):
            raise self.error(f"{argument} in {width} bytes, which is more than it needs", start)
        return argument

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> bytes:
        end = self.offset + count
        taken = self.data[self.offset : end]
        if len(taken) != count:
            raise self.error(f"ends early: {count} bytes wanted, {len(taken)} left")
        self.offset = end
        return taken


def decode(data: bytes, *, strict: bool, indefinite: bool = False) -> Value:
    """Decode the one item that `data` is.

    Args:
        data: The whole item, and nothing after it.
        strict: Lengths and integers must be as short as they can be, as in documents.
        indefinite: Maps and arrays may be of indefinite length, as in the payload of a document.

    Raises:
        CborError: It is not one allowed item.
    """
    decoder = Decoder(data, strict=strict, indefinite=indefinite)
    value = decoder.item()
    if decoder.offset != len(data):
        raise decoder.error(f"{len(data) - decoder.offset} bytes follow the item")
    return value
