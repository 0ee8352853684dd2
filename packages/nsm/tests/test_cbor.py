"""The decoder accepts what requests and documents are made of, and refuses everything else by `CborError`."""

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_nsm.cbor import DEPTH_MAX, Value, decode
from nitro_nsm.errors import CborError

KEYS = st.integers(-(2**64), 2**64 - 1) | st.text(max_size=8)
LEAVES = st.none() | st.booleans() | KEYS | st.binary(max_size=300)


@given(
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_what_an_encoder_writes_is_read(value: Value, strict: bool) -> None:  # noqa: FBT001
    data = cbor2.dumps(value)
    try:
        decoded = decode(data, strict=strict)
    except CborError as error:
        assert "nested deeper" in str(error)  # noqa: PT017 - the only reason that there may be
    else:
        assert decoded == value
        assert cbor2.dumps(decoded) == data


@given(st.binary(max_size=64), st.booleans())
def test_any_bytes_are_an_item_or_an_error_at_an_offset(data: bytes, strict: bool) -> None:  # noqa: FBT001
    try:
        value = decode(data, strict=strict)
    except CborError as error:
        assert 0 <= error.offset <= len(data)  # noqa: PT017 - raising is only one of the two
    else:
        assert cbor2.loads(data) == value


@given(st.binary(min_size=1, max_size=40), st.data())
def test_an_item_that_ends_early_is_refused(value: bytes, data: st.DataObject) -> None:
    encoded = cbor2.dumps({"a": [value, 1], "b": None})
    cut = data.draw(st.integers(0, len(encoded) - 1))

    with pytest.raises(CborError):
        decode(encoded[:cut], strict=True)


@pytest.mark.parametrize(
    ("data", "strict", "lenient"),
    [
        ("1817", None, 23),
        ("1818", 24, 24),
        ("190017", None, 23),
        ("1900ff", None, 255),
        ("190100", 256, 256),
        ("1a0000ffff", None, 0xFFFF),
        ("1a00010000", 0x10000, 0x10000),
        ("1b00000000ffffffff", None, 0xFFFFFFFF),
        ("1b0000000100000000", 1 << 32, 1 << 32),
        ("3817", None, -24),
        ("5801aa", None, b"\xaa"),
        ("7801 61", None, "a"),
        ("a0", {}, {}),
        ("b80101f6", None, {1: None}),
    ],
)
def test_widths_and_indefinite_maps(data: str, strict: object, lenient: object) -> None:
    for is_strict, expected in ((True, strict), (False, lenient)):
        if expected is None:
            with pytest.raises(CborError):
                decode(bytes.fromhex(data), strict=is_strict)
        else:
            assert decode(bytes.fromhex(data), strict=is_strict) == expected


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("bfff", {}),
        ("bf0102ff", {1: 2}),
        ("bf01bf0203ffff", {1: {2: 3}}),
        ("9fff", []),
        ("9f01ff", [1]),
        ("829f01ff9f02ff", [[1], [2]]),
        ("9f8101a10203ff", [[1], {2: 3}]),
    ],
)
def test_maps_and_arrays_of_indefinite_length_where_they_are_allowed(data: str, value: object) -> None:
    assert decode(bytes.fromhex(data), strict=True, indefinite=True) == value
    for strict in (True, False):
        with pytest.raises(CborError, match="indefinite"):
            decode(bytes.fromhex(data), strict=strict)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("bf01010102ff", "a second time"),
        ("bf01ff", "a tag, a float or a simple value"),
        ("bf", "ends early"),
        ("9f", "ends early"),
        ("9f01", "ends early"),
        ("ff", "simple value"),
        ("5f41aaff", "indefinite"),
        ("7f6161ff", "indefinite"),
        ("9fff00", "follow the item"),
        ("9f" * (DEPTH_MAX + 1) + "00", "nested deeper"),
    ],
)
def test_what_is_refused_where_indefinite_lengths_are_allowed(data: str, why: str) -> None:
    with pytest.raises(CborError, match=why):
        decode(bytes.fromhex(data), strict=True, indefinite=True)


def test_maps_may_nest_as_deep_as_arrays() -> None:
    assert decode(bytes.fromhex("a100" * DEPTH_MAX + "05"), strict=True) == {0: {0: {0: {0: 5}}}}
    assert decode(bytes.fromhex("81" * DEPTH_MAX + "05"), strict=True) == [[[[5]]]]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "ends early"),
        ("0000", "follow the item"),
        ("a2010101f6", "a second time"),
        ("a1f601", "map key"),
        ("a1f501", "map key"),
        ("a1410101", "map key"),
        ("a1a001", "map key"),
        ("bfff", "indefinite"),
        ("9fff", "indefinite"),
        ("5f41aaff", "indefinite"),
        ("7f6161ff", "indefinite"),
        ("1c", "reserved"),
        ("c074323032", "tag"),
        ("f90000", "float"),
        ("f7", "simple value"),
        ("f820", "simple value"),
        ("ff", "simple value"),
        ("61ff", "UTF-8"),
        ("9b7fffffffffffffff", "bytes are left"),
        ("bb7fffffffffffffff", "bytes are left"),
        ("5b7fffffffffffffff", "bytes are left"),
        ("81" * (DEPTH_MAX + 1) + "00", "nested deeper"),
    ],
)
def test_what_is_refused(data: str, why: str) -> None:
    with pytest.raises(CborError, match=why):
        decode(bytes.fromhex(data), strict=True)
