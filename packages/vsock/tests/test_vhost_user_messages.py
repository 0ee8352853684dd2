"""The codec of vhost-user messages: what is encoded is decoded, and anything else is refused."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vsock.vhost_user import messages
from nitro_vsock.vhost_user.errors import VhostUserError
from nitro_vsock.vhost_user.messages import (
    HEADER,
    MemoryRegion,
    Message,
    MessageDecoder,
    ProtocolFeature,
    Request,
    memory_table,
)
from vhost_user_strategies import streams

numbers = st.integers(0, (1 << 64) - 1)


def test_requests_and_features_have_the_numbers_of_the_specification() -> None:
    """QEMU, docs/interop/vhost-user.rst: "Front-end message types", "Protocol features", "Header"."""
    requests = [*range(1, 19), 24, 25, 34, 36, 37, 38]

    assert [int(request) for request in Request] == requests
    assert [feature.bit_length() - 1 for feature in ProtocolFeature] == [0, 3, 9, 13, 15]
    assert messages.PROTOCOL_FEATURES == 1 << 30
    assert (messages.VERSION, messages.VERSION_MASK, messages.REPLY, messages.NEED_REPLY) == (1, 3, 4, 8)
    assert (messages.RING_INDEX_MASK, messages.NO_DESCRIPTOR) == (0xFF, 0x100)
    assert (messages.PAYLOAD_BYTES_MAX, messages.TABLE_REGIONS_MAX) == (4096, 8)


@given(
    st.lists(
        st.builds(
            Message,
            st.integers(0, 100),
            st.binary(max_size=100),
            need_reply=st.booleans(),
            reply=st.booleans(),
        )
    ),
    st.integers(1, 50),
)
def test_what_is_encoded_is_decoded_however_it_is_cut(sent: list[Message], cut: int) -> None:
    data = b"".join(message.encode() for message in sent)
    decoder, received, position = MessageDecoder(), [], 0
    while position < len(data):
        piece = data[position : position + min(cut, decoder.wanted)]
        position += len(piece)
        message = decoder.feed(piece)
        if message is not None:
            received.append(message)
    assert received == sent
    assert decoder.idle


@given(streams)
def test_any_bytes_are_messages_or_an_error(data: bytes) -> None:
    decoder, position = MessageDecoder(), 0
    try:
        while position < len(data):
            assert 0 < decoder.wanted <= messages.PAYLOAD_BYTES_MAX
            piece = data[position : position + decoder.wanted]
            position += len(piece)
            decoder.feed(piece)
    except VhostUserError:
        pass


@given(st.lists(st.builds(MemoryRegion, numbers, numbers, numbers, numbers), min_size=1, max_size=8))
def test_a_table_of_regions_survives_the_way(regions: list[MemoryRegion]) -> None:
    assert MemoryRegion.table(Message(Request.SET_MEM_TABLE, memory_table(regions))) == regions


def test_the_decoder_never_wants_bytes_of_the_next_message() -> None:
    decoder = MessageDecoder()
    assert decoder.wanted == HEADER.size

    decoder.feed(HEADER.pack(Request.SET_FEATURES, 1, 8))
    assert decoder.wanted == 8

    assert decoder.feed(bytes(8)) == Message(Request.SET_FEATURES, bytes(8))
    assert decoder.wanted == HEADER.size


def test_descriptors_belong_to_the_message_that_they_came_with() -> None:
    decoder = MessageDecoder()
    decoder.feed(HEADER.pack(Request.SET_VRING_KICK, 1, 8), (10,))
    message = decoder.feed(bytes(8), (11,))
    assert message is not None
    assert message.descriptors == (10, 11)
    assert decoder.take_descriptors() == ()


def test_a_version_that_is_not_ours_is_refused() -> None:
    with pytest.raises(VhostUserError, match="version 2"):
        MessageDecoder().feed(HEADER.pack(Request.GET_FEATURES, 2, 0))


def test_a_payload_over_the_limit_is_refused_before_it_is_read() -> None:
    decoder = MessageDecoder()
    with pytest.raises(VhostUserError, match="payload of 4097 bytes"):
        decoder.feed(HEADER.pack(Request.SET_MEM_TABLE, 1, 4097), (5,))
    assert decoder.take_descriptors() == (5,)


def test_too_many_descriptors_are_refused_and_handed_back() -> None:
    decoder = MessageDecoder()
    with pytest.raises(VhostUserError, match="more than 32"):
        decoder.feed(b"\x01", range(100, 133))
    assert decoder.take_descriptors() == tuple(range(100, 133))


def test_a_message_may_be_as_large_as_it_may_be() -> None:
    sent = Message(Request.SET_OWNER, bytes(4096), tuple(range(32)))
    data, decoder = sent.encode(), MessageDecoder()

    decoder.feed(data[: HEADER.size], range(32))

    assert decoder.feed(data[HEADER.size :]) == sent


def test_a_table_has_up_to_eight_regions() -> None:
    regions = [MemoryRegion(number << 12, 1 << 12, number << 12, 0) for number in range(8)]

    assert MemoryRegion.table(Message(Request.SET_MEM_TABLE, memory_table(regions))) == regions


def test_a_payload_of_another_length_names_the_request() -> None:
    with pytest.raises(VhostUserError, match="SET_VRING_NUM: payload of 4 bytes, must be 8"):
        Message(Request.SET_VRING_NUM, bytes(4)).unpack(messages.VRING_STATE)


@pytest.mark.parametrize("payload", [b"", bytes(8), messages.MEMORY_TABLE.pack(9, 0) + bytes(288)])
def test_a_table_of_no_or_nine_regions_is_refused(payload: bytes) -> None:
    with pytest.raises(VhostUserError, match="regions, must be 1 to 8"):
        MemoryRegion.table(Message(Request.SET_MEM_TABLE, payload))


def test_a_table_that_is_cut_short_is_refused() -> None:
    with pytest.raises(VhostUserError, match="2 regions need 72"):
        MemoryRegion.table(Message(Request.SET_MEM_TABLE, messages.MEMORY_TABLE.pack(2, 0) + bytes(32)))


def test_a_memory_table_is_laid_out_as_specified() -> None:
    region = MemoryRegion(0x1000, 0x2000, 0x3000, 0x4000)

    packed = memory_table([region])

    # Number of regions and padding, 32 bits each; then each region's four 64-bit numbers.
    assert packed == b"".join(
        number.to_bytes(size, sys.byteorder) for number, size in [(1, 4), (0, 4), *((n, 8) for n in region)]
    )
