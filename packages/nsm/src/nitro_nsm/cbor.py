"""A strict decoder for the little CBOR that the Nitro Secure Module speaks (RFC 8949).

Requests come from a guest and documents from anywhere, so nothing is trusted: a length is compared with the
bytes that are left before anything is allocated for it, nesting is bounded, a key may appear only once, and
nothing may follow the item. Tags, floats, indefinite-length strings and arrays, and simple values other than
false, true and null appear in neither requests nor documents and are refused.

Requests and documents differ in two rules. A request's lengths and integers may be written longer than
needed, because clients in C do so; a document's may not. A document's maps may be of indefinite length,
because the hardware's top-level map is so since 2025; a request's may not.
"""

from typing import TypeAlias

from nitro_nsm.errors import CborError

Value: TypeAlias = "int | bytes | str | bool | list[Value] | dict[int | str, Value] | None"

DEPTH_MAX = 4
"""Requests and documents nest two deep (map, map, bytes); the rest is for unknown fields that are ignored."""
INDEFINITE_MAP = 0xBF
SIMPLE: dict[int, bool | None] = {0xF4: False, 0xF5: True, 0xF6: None}


class Decoder:
    """Reads one item.

    Args:
        data: The bytes to read from.
        strict: Follow the rules of documents, not those of requests.
    """

    def __init__(self, data: bytes, *, strict: bool) -> None:
        self.data = data
        self.strict = strict
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
        if initial == INDEFINITE_MAP and self.strict:
            return self._map(None, depth)
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

    def _map(self, count: int | None, depth: int) -> Value:
        """Read the entries of a map; without a `count` they end with a break."""
        found: dict[int | str, Value] = {}
        while count is None or len(found) < count:
            start = self.offset
            if count is None and self.data[start : start + 1] == b"\xff":
                self.offset += 1
                break
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


def decode(data: bytes, *, strict: bool) -> Value:
    """Decode the one item that `data` is.

    Args:
        data: The whole item, and nothing after it.
        strict: Follow the rules of documents: lengths and integers are as short as they can be, and maps may
            be of indefinite length. Otherwise follow those of requests, where it is the other way round.

    Raises:
        CborError: It is not one allowed item.
    """
    decoder = Decoder(data, strict=strict)
    value = decoder.item()
    if decoder.offset != len(data):
        raise decoder.error(f"{len(data) - decoder.offset} bytes follow the item")
    return value
