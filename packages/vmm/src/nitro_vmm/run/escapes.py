"""Keeps a guest's escape sequences from the user's terminal.

A terminal obeys whoever prints: it changes its title, fills the clipboard, moves up and overwrites what stood
there, or *types* an answer, which a shell would then run. Of all that a guest prints, text and colours pass,
and the few movements within the last line that line editors need.

Source: ECMA-48, sections 5.4 (control sequences) and 5.6 (control strings).
"""

import re
from typing import Final

CONTROLS: Final = b"\t\n\r\b\a"
"""What passes of the C0 controls. ESC begins a sequence, and the others do nothing that is wanted."""

SEQUENCE_BYTES_MAX: Final = 64
"""A longer control sequence is none that passes."""

ESC: Final = 0x1B
PASSING: Final = re.compile(rb"\x1b\[[0-9;:]*[mKCD]|\x1b\[J")
"""Colours (SGR), erasing to the end of the line (EL) and below it (ED), right (CUF) and left (CUB)."""
PLAIN: Final = re.compile(rb"[\x20-\x7e\t\n\r\x08\x07]+")


class EscapeFilter:
    """Takes a console's output in any pieces, and returns what may go to a terminal."""

    def __init__(self) -> None:
        self._sequence = bytearray()
        """An escape sequence that has begun."""
        self._string = False
        """Within a control string (OSC, DCS, SOS, PM, APC), which ends with BEL or ESC backslash."""
        self._character = bytearray()
        """A UTF-8 character that has begun."""

    def feed(self, data: bytes) -> bytes:
        """What of ``data`` may be printed."""
        out = bytearray()
        at = 0
        while at < len(data):
            if not (self._sequence or self._string or self._character) and (plain := PLAIN.match(data, at)):
                out += plain[0]
                at = plain.end()
                continue
            out += self._take(data[at])
            at += 1
        return bytes(out)

    def _take(self, byte: int) -> bytes:
        if self._string:
            self._take_of_string(byte)
            return b""
        if self._sequence:
            return self._take_of_sequence(byte)
        if byte == ESC:
            self._character.clear()
            self._sequence.append(byte)
            return b""
        if byte >= 0x80:
            return self._take_of_character(byte)
        self._character.clear()
        return bytes((byte,)) if byte in CONTROLS or 0x20 <= byte < 0x7F else b""

    def _take_of_string(self, byte: int) -> None:
        # The terminator is BEL, or ESC and a backslash. ESC and anything else ends the string in some
        # terminals, so that what follows is looked at as a new sequence.
        if self._sequence:
            self._string = False
            self._sequence.clear()
            if byte != ord("\\"):
                self._sequence.append(ESC)
                self._take_of_sequence(byte)
        elif byte == ESC:
            self._sequence.append(byte)
        elif byte in (0x07, 0x18, 0x1A):  # BEL; CAN and SUB end every sequence
            self._string = False

    def _take_of_sequence(self, byte: int) -> bytes:
        sequence = self._sequence
        if byte in (0x18, 0x1A, ESC):
            sequence.clear()
            if byte == ESC:
                sequence.append(byte)
            return b""
        if byte < 0x20:  # a terminal obeys controls within a sequence
            return bytes((byte,)) if byte in CONTROLS else b""
        if len(sequence) < SEQUENCE_BYTES_MAX:
            sequence.append(
                byte
            )  # one that was cut off here does not match below, because its end is missing
        if len(sequence) == 2:
            if byte in b"]PX^_":
                self._string = True
                sequence.clear()
            elif byte != ord("[") and not 0x20 <= byte <= 0x2F:
                sequence.clear()  # two bytes, such as a reset of the terminal
            return b""
        # A control sequence ends with 0x40 to 0x7E, another escape sequence with 0x30 to 0x7E.
        if 0x40 <= byte <= 0x7E or (sequence[1] != ord("[") and byte >= 0x30) or byte >= 0x7F:
            whole = bytes(sequence)
            sequence.clear()
            return whole if PASSING.fullmatch(whole) else b""
        return b""

    def _take_of_character(self, byte: int) -> bytes:
        character = self._character
        if byte >= 0xC0:
            character[:] = (byte,)
        elif character:
            character.append(byte)
        else:
            return b""  # a lone 0x80 to 0x9F is a control of 8 bits, such as CSI
        try:
            text = character.decode()
        except UnicodeDecodeError:
            if len(character) >= 4:
                character.clear()
            return b""
        whole = bytes(character)
        character.clear()
        return whole if text >= "\xa0" else b""
