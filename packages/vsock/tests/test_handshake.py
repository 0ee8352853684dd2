"""The ``CONNECT`` line, in whatever pieces it comes."""

import itertools
import re
import socket

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from nitro_vsock import SocketType
from nitro_vsock.host.handshake import Handshake, HandshakeError, parse_line, take_line


@given(st.binary(max_size=40))
def test_any_line_is_a_port_or_refused(line: bytes) -> None:
    try:
        port = parse_line(line)
    except HandshakeError:
        return
    assert 0 <= port < 0xFFFF_FFFF
    assert [word.lower() for word in line.split()] == [b"connect", line.split()[1]]


PIECES = (b"connect", b"CONNECT", b"Connect", b" ", b"\t", b"\n", b"\x0b", b"\x1c", b"\xa0", b"\0")
NUMBERS = (b"0", b"5", b"4294967294", b"4294967295", b"00000000005", b"+5", b"-5", b"1_0", b"\xb2")


@given(st.lists(st.sampled_from(PIECES + NUMBERS), max_size=6).map(b"".join))
@example(b" \tconnect\x0b0000000005 \n")
def test_a_line_is_the_word_and_a_number(line: bytes) -> None:
    found = re.fullmatch(rb"\s*connect\s+(\d{1,10})\s*", line, re.IGNORECASE)

    if found is not None and int(found[1]) < 0xFFFF_FFFF:
        assert parse_line(line) == int(found[1])
    else:
        with pytest.raises(HandshakeError):
            parse_line(line)


@pytest.mark.parametrize(("port", "taken"), [(0, True), (2**32 - 2, True), (2**32 - 1, False)])
def test_the_greatest_port_is_the_one_before_any(port: int, taken: object) -> None:
    line = b"CONNECT %d\n" % port

    if taken:
        assert parse_line(line) == port
    else:
        with pytest.raises(HandshakeError, match="up to 4294967294"):
            parse_line(line)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 2), st.binary(max_size=40), st.sets(st.integers(1, 60)))
def test_pieces_make_no_difference_and_the_rest_is_left(port: int, rest: bytes, cuts: set[int]) -> None:
    text = b"CONNECT %d\n" % port + rest
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        handshake = Handshake(ours, SocketType.STREAM)
        found = None
        edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
        for start, end in itertools.pairwise(edges):
            theirs.send(text[start:end])
            if found is None:
                found = handshake.read()
        assert found == port
        take_line(ours, handshake.unread)
        assert (ours.recv(100) if rest else b"") == rest


@pytest.mark.parametrize("text", [b"", b"CONNECT 5"])
def test_a_program_that_leaves_early_is_told_from_one_that_is_slow(text: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        handshake = Handshake(ours, SocketType.STREAM)
        if text:
            theirs.send(text)
        assert handshake.read() is None
        theirs.close()
        with pytest.raises(HandshakeError, match="closed before"):
            handshake.read()


@pytest.mark.parametrize("pieces", [(32,), (20, 20), (20, 12), (31, 1)])
def test_a_line_that_never_ends_is_refused_in_however_many_pieces(pieces: tuple[int, ...]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        handshake = Handshake(ours, SocketType.STREAM)
        for piece in pieces[:-1]:
            theirs.send(b" " * piece)
            assert handshake.read() is None

        theirs.send(b" " * pieces[-1])

        with pytest.raises(HandshakeError, match="no newline in the first 32 bytes"):
            handshake.read()


def test_a_line_may_be_as_long_as_the_limit() -> None:
    ours, theirs = socket.socketpair()
    line = b"CONNECT 5".ljust(31) + b"\n"
    with ours, theirs:
        ours.setblocking(False)
        theirs.send(line)

        assert Handshake(ours, SocketType.STREAM).read() == 5
