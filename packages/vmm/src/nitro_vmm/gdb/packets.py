"""Packets of GDB's remote serial protocol, as bytes and as values (GDB's manual, "Remote Protocol").

A packet is ``$`` payload ``#`` and two hexadecimal digits of the payload's sum modulo 256. Within a payload
``}`` escapes the byte that follows it, which was XORed with 0x20. Each side says ``+`` for a packet that came
whole and ``-`` for one that did not, until both agree to leave that out. A single byte 3 is Ctrl-C.
"""

from dataclasses import dataclass
from typing import Final

PAYLOAD_BYTES_MAX: Final = 0x4000
"""GDB is told of it (``PacketSize``), and keeps to it; a longer packet is refused with ``-``."""

INTERRUPT_BYTE: Final = 0x03
ESCAPE: Final = 0x7D
ESCAPE_BIT: Final = 0x20
ESCAPED: Final = frozenset(b"$#}*")
"""Bytes that may not stand for themselves in an answer; ``*`` would begin a run length."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A whole packet with the right sum."""

    payload: bytes
    """Without frame and escapes."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """Something that is no packet: a wrong sum, or too long. The other side should send it again."""


@dataclass(frozen=True, slots=True)
class SendAgain:
    """The other side did not get our last packet."""


Event = Packet | Interrupt | Damaged | SendAgain


def encode(payload: bytes) -> bytes:
    """A packet of this payload."""
    escaped = bytearray()
    for byte in payload:
        escaped += bytes((ESCAPE, byte ^ ESCAPE_BIT)) if byte in ESCAPED else bytes((byte,))
    return b"$%s#%02x" % (bytes(escaped), sum(escaped) & 0xFF)


class Decoder:
    """Takes bytes in pieces of any size, and gives what they mean."""

    def __init__(self) -> None:
        self._packet: bytearray | None = None
        """What came of a packet so far, without its ``$``; `None` between packets."""
        self._too_long = False

    def feed(self, data: bytes) -> list[Event]:
        """What these bytes complete; bytes between packets that mean nothing are ignored."""
        events: list[Event] = []
        for byte in data:
            event = self._between(byte) if self._packet is None else self._within(byte)
            if event is not None:
                events.append(event)
        return events

    def _between(self, byte: int) -> Event | None:
        if byte == ord("$"):
            self._packet = bytearray()
            self._too_long = False
        elif byte == INTERRUPT_BYTE:
            return Interrupt()
        elif byte == ord("-"):
            return SendAgain()
        return None

    def _within(self, byte: int) -> Event | None:
        packet = self._packet
        assert packet is not None  # noqa: S101 - the caller has looked
        if byte == ord("$"):  # the one before was broken off; this byte cannot stand in a packet
            self._packet = bytearray()
            self._too_long = False
            return Damaged()
        if len(packet) < 2 * PAYLOAD_BYTES_MAX + 3:  # all of it may be escaped
            packet.append(byte)
        else:
            # Only its end is looked for, so that a peer that sends for ever takes no memory.
            self._too_long = True
            packet[-3:] = (*packet[-2:], byte)
        if len(packet) < 3 or packet[-3] != ord("#"):
            return None
        self._packet = None
        return Damaged() if self._too_long else _finish(packet)


def _finish(packet: bytearray) -> Event:
    body, digits = packet[:-3], bytes(packet[-2:])
    try:
        expected = int(digits, 16) if digits.isalnum() else -1
    except ValueError:
        expected = -1
    if sum(body) & 0xFF != expected:
        return Damaged()
    payload = bytearray()
    bytes_left = iter(body)
    for byte in bytes_left:
        if byte == ESCAPE:
            following = next(bytes_left, None)
            if following is None:
                return Damaged()
            payload.append(following ^ ESCAPE_BIT)
        else:
            payload.append(byte)
    return Packet(bytes(payload)) if len(payload) <= PAYLOAD_BYTES_MAX else Damaged()
