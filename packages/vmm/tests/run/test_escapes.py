"""What of a guest's output reaches a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.run.escapes import PASSING, EscapeFilter


@pytest.mark.parametrize(
    "text",
    [
        b"plain\r\n\ttext\b\a",
        b"\x1b[0m\x1b[1;31mred\x1b[m",
        b"\x1b[38;2;1;2;3mcolour\x1b[K\x1b[2C\x1b[D\x1b[J",
        "umlauts äöü, 漢字, \N{GRINNING FACE}".encode(),
    ],
)
def test_text_and_colours_pass(text: bytes) -> None:
    assert EscapeFilter().feed(text) == text


@pytest.mark.parametrize(
    "sequence",
    [
        pytest.param(b"\x1b]0;title\x07", id="title"),
        pytest.param(b"\x1b]52;c;aGk=\x1b\\", id="clipboard"),
        pytest.param(b"\x1b[6n", id="cursor report"),
        pytest.param(b"\x1b[4@", id="insert characters, the first final byte"),
        pytest.param(b"\x1b[2~", id="the last final byte"),
        pytest.param(b"\x1b[1\x7f", id="broken off by DEL"),
        pytest.param(b"\x1b[c", id="device attributes"),
        pytest.param(b"\x1b[2J\x1b[H\x1b[A", id="clear and move"),
        pytest.param(b"\x1b[?1049h", id="alternate screen"),
        pytest.param(b'\x1bP$q"p\x1b\\', id="DCS"),
        pytest.param(b"\x1b_payload\x1b\\", id="APC"),
        pytest.param(b"\x1bc", id="reset"),
        pytest.param(b"\x1b(0", id="character set"),
        pytest.param(b"\x9b6n"[:1], id="CSI of 8 bits"),
        pytest.param("\x9b".encode(), id="CSI as UTF-8"),
        pytest.param(b"\x05\x0e\x0f\x7f", id="controls"),
        pytest.param(b"\x1b[" + b"1;" * 1000 + b"m", id="long"),
        pytest.param(b"\xff\xc0", id="no UTF-8"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 1000])
def test_other_sequences_do_not(sequence: bytes, piece_bytes: int) -> None:
    text = b"a" + sequence + b"b"
    pieces = [text[at : at + piece_bytes] for at in range(0, len(text), piece_bytes)]

    clean = EscapeFilter()

    assert b"".join(clean.feed(piece) for piece in pieces) == b"ab"


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        pytest.param(b"\x1b[1\rm", b"\r\x1b[1m", id="a control within a sequence is obeyed"),
        pytest.param(b"\x1b[1\x0em", b"\x1b[1m", id="an unwanted control is not"),
        pytest.param(b"\x1b[6\x18n", b"n", id="CAN breaks a sequence off"),
        pytest.param(b"\x1b[6\x1an", b"n", id="SUB breaks a sequence off"),
        pytest.param(b"\x1b[6\x1b[1m", b"\x1b[1m", id="ESC begins anew"),
        pytest.param(b"\x1b]0;t\x18n", b"n", id="CAN ends a string"),
        pytest.param(b"\x1b]0;t\x1an", b"n", id="SUB ends a string"),
        pytest.param(b"\x1b]0;t\x1b[1mn", b"\x1b[1mn", id="ESC and another byte end a string"),
        pytest.param(b"\x1b[" + b"1" * 61 + b"m", b"\x1b[" + b"1" * 61 + b"m", id="64 bytes"),
        pytest.param(b"\x1b[" + b"1" * 62 + b"m", b"", id="65 bytes"),
        pytest.param("\xa0".encode(), "\xa0".encode(), id="the first character that is no control"),
        pytest.param("\x9f".encode(), b"", id="the last control"),
        pytest.param(b"\x1b/AB", b"B", id="an intermediate byte before a final one, the last"),
        pytest.param(b"\x1b AB", b"B", id="and the first"),
        pytest.param(b"\x1b0AB", b"AB", id="and one that is final itself"),
        pytest.param(b"\x1b[1 mx", b"x", id="a space makes it another sequence"),
        pytest.param(b"\xc3a", b"a", id="a character that is broken off by another"),
        pytest.param(b"\xc3 ", b" ", id="by the first that is none of controls"),
        pytest.param(b"\xc3~", b"~", id="by the last"),
        pytest.param(b"\xc3\x7f\xc3\x1f", b"", id="by a control"),
        pytest.param(b"\xf0\x9f\x98a", b"a", id="and one of four bytes"),
        pytest.param(b"\xc3\x1b[1m", b"\x1b[1m", id="and by a sequence"),
    ],
)
def test_what_is_broken_off_takes_nothing_else_with_it(text: bytes, passes: bytes) -> None:
    assert EscapeFilter().feed(text) == passes


FRAGMENTS = st.sampled_from(
    [b"\x1b", b"[", b"]", b"P", b"\\", b"\x07", b"1", b"m", b"n", b"\xc2", b"\x9b", b"!"]
)


@given(st.lists(st.one_of(FRAGMENTS, st.binary(max_size=4))))
def test_whatever_comes_only_what_passes_gets_through(pieces: list[bytes]) -> None:
    clean = EscapeFilter()

    out = b"".join(clean.feed(piece) for piece in pieces)

    assert out == EscapeFilter().feed(b"".join(pieces))
    rest = PASSING.sub(b"", out)
    assert b"\x1b" not in rest
    assert not any(0x80 <= ord(character) < 0xA0 for character in rest.decode())
