"""The console's port while it only prints: few of its accesses reach the device."""

from collections.abc import Iterator

import pytest

from nitro_vmm.accel.unicorn import native
from nitro_vmm.accel.unicorn.engine import Stopped
from tiny_guest import HLT, STORE_RAX, Guest

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason=f"no native part: {native.MISSING}")

COM1 = 0x3F8
IER, LCR, MCR, LSR = COM1 + 1, COM1 + 3, COM1 + 4, COM1 + 5
EMPTY = 0x60


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    guest.bus.answer = EMPTY
    yield guest
    guest.cpu.stop()


def out(port: int, value: int) -> str:
    return f"66ba{port.to_bytes(2, 'little').hex()} b0{value:02x} ee "


def wait() -> str:
    return f"66ba{LSR.to_bytes(2, 'little').hex()} ec "


def print_text(text: bytes) -> str:
    return "".join(wait() + out(COM1, byte) for byte in text)


PLAIN = out(LCR, 3) + out(MCR, 3) + out(IER, 0)


def test_a_line_is_handed_on_at_once(guest: Guest) -> None:
    assert guest.run(f"{PLAIN} {print_text(b'hi' + bytes([10]))} {HLT}") is Stopped.HALTED

    assert guest.bus.asked[3:] == [("in", LSR, 1), ("bytes", COM1, b"hi\n")]


def test_what_is_no_line_yet_comes_with_the_next_access(guest: Guest) -> None:
    assert guest.run(f"{PLAIN} {print_text(b'hi')} {out(0x80, 1)} {HLT}") is Stopped.HALTED

    assert guest.bus.asked[3:] == [("in", LSR, 1), ("bytes", COM1, b"hi"), ("out", 0x80, 1, 1)]


def test_what_is_no_line_yet_comes_when_the_guest_stops(guest: Guest) -> None:
    assert guest.run(f"{PLAIN} {print_text(b'hi')} {HLT}") is Stopped.HALTED

    assert guest.bus.asked[-1] == ("bytes", COM1, b"hi")


def test_long_lines_come_in_pieces(guest: Guest) -> None:
    # ecx=600: wait for the line status, print, loop
    code = f"b958020000 {wait()} b061 66ba{COM1.to_bytes(2, 'little').hex()} ee ffc9 75f0"
    assert guest.run(f"{PLAIN} {code} {HLT}") is Stopped.HALTED

    pieces = [asked for asked in guest.bus.asked if asked[0] == "bytes"]
    assert b"".join(data for _, _, data in pieces if isinstance(data, bytes)) == b"a" * 600
    assert len(pieces) == 3


def test_the_status_is_what_the_device_said(guest: Guest) -> None:
    assert guest.run(f"{PLAIN} {wait()} 31c0 {wait()} {STORE_RAX} {HLT}") is Stopped.HALTED

    assert guest.result == EMPTY
    assert guest.bus.asked[3:] == [("in", LSR, 1)]


@pytest.mark.parametrize(
    "setup",
    [
        pytest.param(out(LCR, 3) + out(MCR, 3) + out(IER, 1), id="an interrupt is enabled"),
        pytest.param(out(LCR, 0x83) + out(MCR, 3), id="divisor latch"),
        pytest.param(out(LCR, 3) + out(MCR, 0x13) + out(IER, 0), id="loopback"),
        pytest.param(out(LCR, 3) + out(MCR, 3), id="nobody knows what is enabled"),
        pytest.param(PLAIN + wait() + out(IER, 5), id="enabled later"),
    ],
)
def test_otherwise_the_device_sees_every_access(guest: Guest, setup: str) -> None:
    assert guest.run(f"{setup} {print_text(b'h')} {print_text(b'i')} {HLT}") is Stopped.HALTED

    assert guest.bus.asked[-4:] == [
        ("in", LSR, 1),
        ("out", COM1, 1, ord("h")),
        ("in", LSR, 1),
        ("out", COM1, 1, ord("i")),
    ]


def test_input_that_waits_keeps_the_device_in_charge(guest: Guest) -> None:
    guest.bus.answer = EMPTY | 1

    assert guest.run(f"{PLAIN} {print_text(b'h')} {print_text(b'i')} {HLT}") is Stopped.HALTED

    assert ("out", COM1, 1, ord("i")) in guest.bus.asked
