"""Packets as bytes and as values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.gdb.packets import Damaged, Decoder, Event, Interrupt, Packet, SendAgain, encode

# The bounds as they are promised, so that those of the program are held against them.
PAYLOAD_BYTES_MAX = 0x4000

PAYLOADS = st.binary(max_size=100)


@pytest.mark.parametrize(
    ("payload", "packet"),
    [(b"OK", b"$OK#9a"), (b"", b"$#00"), (b"a}b#", b"$a}]b}\x03#1d")],
)
def test_packets_of_gdbs_manual_and_escapes(payload: bytes, packet: bytes) -> None:
    assert encode(payload) == packet
    assert Decoder().feed(packet) == [Packet(payload)]


@given(st.lists(PAYLOADS, max_size=4), st.data())
def test_payloads_come_through_whatever_the_pieces(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"+".join(encode(payload) for payload in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    decoder, events = Decoder(), list[Event]()

    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += decoder.feed(stream[start:end])

    assert events == [Packet(payload) for payload in payloads]


@given(PAYLOADS, st.integers(0, 255))
def test_a_wrong_sum_is_damage(payload: bytes, added: int) -> None:
    packet = encode(payload)
    digits = b"%02x" % (int(packet[-2:], 16) + 1 + added % 255 & 0xFF)

    assert Decoder().feed(packet[:-2] + digits) == [Damaged()]


@pytest.mark.parametrize("packet", [b"$OK#zz", b"$OK#+1", b"$OK# 9", b"$}#7d"])
def test_what_is_no_packet(packet: bytes) -> None:
    assert Decoder().feed(packet) == [Damaged()]


def test_ctrl_c_and_requests_to_send_again_come_between_packets() -> None:
    assert Decoder().feed(b"+\x03-xyz$OK#9a\x03") == [Interrupt(), SendAgain(), Packet(b"OK"), Interrupt()]


def test_a_packet_that_begins_anew() -> None:
    assert Decoder().feed(b"$half$OK#9a") == [Damaged(), Packet(b"OK")]


def test_the_longest_payload_and_one_that_is_longer() -> None:
    longest, longer = b"}" * PAYLOAD_BYTES_MAX, b"x" * (PAYLOAD_BYTES_MAX + 1)

    assert Decoder().feed(encode(longest)) == [Packet(longest)]
    assert Decoder().feed(encode(longer)) == [Damaged()]


def test_one_that_never_ends_takes_no_memory_and_the_next_one_is_heard() -> None:
    decoder = Decoder()

    for _ in range(100):
        assert decoder.feed(b"x" * PAYLOAD_BYTES_MAX if _ else b"$") == []

    assert len(decoder._packet or b"") < 3 * PAYLOAD_BYTES_MAX
    assert decoder.feed(b"#00$OK#9a") == [Damaged(), Packet(b"OK")]
