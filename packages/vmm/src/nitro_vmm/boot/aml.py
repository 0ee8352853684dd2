"""Encodes the part of ACPI Machine Language that describes fixed devices (ACPI 6.5 chapter 20).

Each function returns the bytes of one object. Objects that contain others take them as arguments.
"""

import struct

ZERO_OP, ONE_OP, NAME_OP = b"\x00", b"\x01", b"\x08"
BYTE_PREFIX, WORD_PREFIX, DWORD_PREFIX, QWORD_PREFIX = b"\x0a", b"\x0b", b"\x0c", b"\x0e"
STRING_PREFIX, SCOPE_OP, BUFFER_OP, PACKAGE_OP, DEVICE_OP = b"\x0d", b"\x10", b"\x11", b"\x12", b"\x5b\x82"
METHOD_OP, NOTIFY_OP = b"\x14", b"\x86"
METHOD_SERIALIZED = 1 << 3

# Resource descriptors (ACPI 6.5 §6.4): tag, flags, then numbers.
IO_PORT = struct.Struct("<BBHHBB")
MEMORY32_FIXED = struct.Struct("<BHBII")
EXTENDED_INTERRUPT = struct.Struct("<BHBBI")
END_TAG = b"\x79\x00"  # its checksum is 0, which means that there is no checksum


def integer(value: int) -> bytes:
    """An integer in its shortest form (§20.2.3).

    Raises:
        ValueError: It has more than 64 bits.
    """
    if value < 2:
        return (ZERO_OP, ONE_OP)[value]
    for prefix, code in (
        (BYTE_PREFIX, "<B"),
        (WORD_PREFIX, "<H"),
        (DWORD_PREFIX, "<I"),
        (QWORD_PREFIX, "<Q"),
    ):
        if value < 1 << 8 * struct.calcsize(code):
            return prefix + struct.pack(code, value)
    raise ValueError(f"{value:#x} has more than 64 bits")


def string(text: str) -> bytes:
    """A string of ASCII characters."""
    return STRING_PREFIX + text.encode("ascii") + b"\0"


def segment(text: str) -> bytes:
    """A name of one to four characters, filled up with underscores (§20.2.2).

    Raises:
        ValueError: It has another length.
    """
    if not 1 <= len(text) <= 4:
        raise ValueError(f"{text!r} is not a name of one to four characters")
    return text.ljust(4, "_").encode("ascii")


def name(text: str, value: bytes) -> bytes:
    """A named object, ``Name (text, value)``."""
    return NAME_OP + segment(text) + value


def package(*elements: bytes) -> bytes:
    """A package of up to 255 elements."""
    return PACKAGE_OP + _with_length(bytes([len(elements)]) + b"".join(elements))


def scope(text: str, *objects: bytes) -> bytes:
    """Objects within an existing name, ``Scope (text) {...}``."""
    return SCOPE_OP + _with_length(segment(text) + b"".join(objects))


def device(text: str, *objects: bytes) -> bytes:
    """A device, ``Device (text) {...}``."""
    return DEVICE_OP + _with_length(segment(text) + b"".join(objects))


def method(text: str, arguments: int, *statements: bytes) -> bytes:
    """A method that runs once at a time, ``Method (text, arguments, Serialized) {...}``."""
    flags = bytes([arguments | METHOD_SERIALIZED])
    return METHOD_OP + _with_length(segment(text) + flags + b"".join(statements))


def notify(text: str, value: int) -> bytes:
    """Tell the driver of an object that something happened to it, ``Notify (text, value)``."""
    return NOTIFY_OP + segment(text) + integer(value)


def eisa_id(text: str) -> bytes:
    """A Plug and Play id such as ``PNP0501``, as the integer that ``EisaId ()`` makes of it (§19.3.4)."""
    letters, product = text[:3], int(text[3:], 16)
    manufacturer = 0
    for letter in letters:
        manufacturer = manufacturer << 5 | ord(letter) - 0x40
    return DWORD_PREFIX + struct.pack(">HH", manufacturer, product)


def resource_template(*descriptors: bytes) -> bytes:
    """A buffer of resource descriptors, as ``_CRS`` wants it."""
    data = b"".join(descriptors) + END_TAG
    return BUFFER_OP + _with_length(integer(len(data)) + data)


def io_ports(start: int, count: int) -> bytes:
    """I/O ports, decoded with 16 bits (§6.4.2.5)."""
    return IO_PORT.pack(0x47, 1, start, start, 1, count)


def memory32_fixed(start: int, size: int) -> bytes:
    """Writable memory or registers below 4 GiB (§6.4.3.4)."""
    return MEMORY32_FIXED.pack(0x86, MEMORY32_FIXED.size - 3, 1, start, size)


def interrupt(number: int, *, level: bool) -> bytes:
    """An interrupt that the device raises alone, active high, level- or edge-triggered (§6.4.3.6)."""
    consumer, edge = 1 << 0, 1 << 1
    flags = consumer if level else consumer | edge
    return EXTENDED_INTERRUPT.pack(0x89, EXTENDED_INTERRUPT.size - 3, flags, 1, number)


def _with_length(body: bytes) -> bytes:
    """PkgLength and ``body``; the length counts its own bytes as well (§20.2.4)."""
    # One byte holds 6 bits of the length. Longer ones put 4 bits into the first byte, whose upper two say how
    # many bytes follow.
    if len(body) + 1 < 1 << 6:
        return bytes([len(body) + 1]) + body
    for extra in (1, 2, 3):
        length = len(body) + 1 + extra
        if length < 1 << 4 + 8 * extra:
            return bytes([extra << 6 | length & 0xF]) + (length >> 4).to_bytes(extra, "little") + body
    raise ValueError(f"{len(body)} bytes are more than a package can hold")
