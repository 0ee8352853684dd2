"""Every request, its reply byte for byte, and what a bad one gets."""

import hashlib
import itertools
import tracemalloc

import cbor2
import pytest

from nitro_nsm import Nsm, NsmConfig

ZERO = bytes(48)
ROLE = "arn:aws:iam::123456789012:role/r"
INSTANCE = "i-0123456789abcdef0"
IMAGE = {index: bytes([index + 1]) * 48 for index in (0, 1, 2, 8)}


@pytest.fixture
def nsm() -> Nsm:
    counter = itertools.count()
    return Nsm(
        NsmConfig(pcrs=IMAGE, instance_id="i-0123456789abcdef0", enclave_id="019fc8255f07a185"),
        entropy=lambda count: hashlib.shake_256(bytes([next(counter)])).digest(count),
    )


def ask(nsm: Nsm, request: object) -> object:
    return cbor2.loads(nsm.handle(cbor2.dumps(request)))


def test_describe_nsm_is_as_hardware_sends_it(nsm: Nsm) -> None:
    assert nsm.handle(cbor2.dumps("DescribeNSM")) == cbor2.dumps(
        {
            "DescribeNSM": {
                "digest": "SHA384",
                "max_pcrs": 32,
                "module_id": "i-0123456789abcdef0-enc019fc8255f07a185",
                "locked_pcrs": list(range(16)),
                "version_major": 1,
                "version_minor": 0,
                "version_patch": 0,
            }
        }
    )


def test_get_random_has_the_prefix_that_linux_compares(nsm: Nsm) -> None:
    first, second = (nsm.handle(b"\x69GetRandom") for _ in range(2))

    assert first.startswith(b"\xa1\x69GetRandom\xa1\x66random\x59\x01\x00")
    assert len(first) == 22 + 256
    assert first != second


def test_describe_pcr(nsm: Nsm) -> None:
    reply = nsm.handle(cbor2.dumps({"DescribePCR": {"index": 2}}))

    assert reply == cbor2.dumps({"DescribePCR": {"data": IMAGE[2], "lock": True}})
    assert ask(nsm, {"DescribePCR": {"index": 31}}) == {"DescribePCR": {"data": ZERO, "lock": False}}


def test_extending_hashes_the_old_value_and_the_data(nsm: Nsm) -> None:
    value = hashlib.sha384(ZERO + b"hello").digest()
    again = hashlib.sha384(value + b"").digest()

    assert ask(nsm, {"ExtendPCR": {"index": 16, "data": b"hello"}}) == {"ExtendPCR": {"data": value}}
    assert ask(nsm, {"ExtendPCR": {"data": b"", "index": 16}}) == {"ExtendPCR": {"data": again}}
    assert ask(nsm, {"DescribePCR": {"index": 16}}) == {"DescribePCR": {"data": again, "lock": False}}


def test_a_lock_holds(nsm: Nsm) -> None:
    assert nsm.handle(cbor2.dumps({"LockPCR": {"index": 16}})) == b"\x67LockPCR"
    assert ask(nsm, {"LockPCR": {"index": 16}}) == {"Error": "ReadOnlyIndex"}
    assert ask(nsm, {"ExtendPCR": {"index": 16, "data": b"late"}}) == {"Error": "ReadOnlyIndex"}
    assert ask(nsm, {"DescribePCR": {"index": 16}}) == {"DescribePCR": {"data": ZERO, "lock": True}}


def test_lock_range_takes_locked_registers_too(nsm: Nsm) -> None:
    assert nsm.handle(cbor2.dumps({"LockPCRs": {"range": 20}})) == b"\x68LockPCRs"
    assert ask(nsm, {"DescribeNSM": {}}) == {"Error": "InvalidOperation"}
    assert ask(nsm, {"ExtendPCR": {"index": 19, "data": b""}}) == {"Error": "ReadOnlyIndex"}
    assert ask(nsm, {"LockPCR": {"index": 20}}) == "LockPCR"
    assert ask(nsm, {"LockPCRs": {"range": 32}}) == "LockPCRs"
    assert ask(nsm, {"LockPCRs": {"range": 32}}) == "LockPCRs"


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"DescribePCR": {"index": 32}}, "InvalidIndex"),
        ({"DescribePCR": {"index": 0xFFFF}}, "InvalidIndex"),
        ({"DescribePCR": {"index": 0x1_0000}}, "InvalidOperation"),
        ({"DescribePCR": {"index": -1}}, "InvalidOperation"),
        ({"DescribePCR": {"index": True}}, "InvalidOperation"),
        ({"DescribePCR": {"index": "1"}}, "InvalidOperation"),
        ({"DescribePCR": {}}, "InvalidOperation"),
        ({"DescribePCR": [0]}, "InvalidOperation"),
        ("DescribePCR", "InvalidOperation"),
        ({"DescribeNSM": None}, "InvalidOperation"),
        ({"GetRandom": None}, "InvalidOperation"),
        ({"ExtendPCR": {"index": 0, "data": b"x"}}, "ReadOnlyIndex"),
        ({"ExtendPCR": {"index": 32, "data": b"x"}}, "InvalidIndex"),
        ({"ExtendPCR": {"index": 16}}, "InvalidOperation"),
        ({"ExtendPCR": {"index": 16, "data": None}}, "InvalidOperation"),
        ({"ExtendPCR": {"index": 16, "data": [1, 2]}}, "InvalidOperation"),
        ({"LockPCR": {"index": 15}}, "ReadOnlyIndex"),
        ({"LockPCR": {"index": 32}}, "InvalidIndex"),
        ({"LockPCRs": {"range": 33}}, "InvalidIndex"),
        ({"LockPCRs": {"range": 0xFFFF}}, "InvalidIndex"),
        ({"LockPCRs": {"index": 3}}, "InvalidOperation"),
        ({"Attestation": {"nonce": 5}}, "InvalidOperation"),
        ("Attestation", "InvalidOperation"),
        ({"DescribeNSM": None, "GetRandom": None}, "InvalidOperation"),
        ({}, "InvalidOperation"),
        ([], "InvalidOperation"),
        (1, "InvalidOperation"),
        (None, "InvalidOperation"),
        ("Foo", "InvalidOperation"),
        ({1: {}}, "InvalidOperation"),
    ],
    ids=repr,
)
def test_a_bad_request_is_refused_and_changes_nothing(nsm: Nsm, request_: object, error: str) -> None:
    before = nsm.state()

    assert ask(nsm, request_) == {"Error": error}
    assert nsm.state() == before


@pytest.mark.parametrize("width", ["10", "1810", "190010", "1a00000010", "1b0000000000000010"])
def test_an_index_may_have_any_width(nsm: Nsm, width: str) -> None:
    request = bytes.fromhex(f"a167 {b'LockPCR'.hex()} a165 {b'index'.hex()} {width}")

    assert nsm.handle(request) == b"\x67LockPCR"
    assert ask(nsm, {"DescribePCR": {"index": 16}}) == {"DescribePCR": {"data": ZERO, "lock": True}}


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\x6bDescribeN",
        b"\x69GetRandom\x00",
        b"\x7f\x69GetRandom\xff",
        b"\xbf\x67LockPCR\xa1\x65index\x10\xff",
        b"\xa1\x67LockPCR\xbf\x65index\x10\xff",
        b"\xa1\x67LockPCR\xa2\x65index\x10\x65index\x11",
        b"\xa2\x67LockPCR\xa1\x65index\x10\x67LockPCR\xa1\x65index\x10",
        b"\xa1\x67LockPCR\xa1\x65index\xc2\x41\x10",
        b"\xa1\x67LockPCR\xa1\x65index\xf9\x4c\x00",
        b"\xa1\x67LockPCR\xa1\x65index\xf7",
        b"\xa1\x69ExtendPCR\xa2\x65index\x10\x64data\x5f\x41\x61\xff",
        b"\xc1\x69GetRandom",
        b"\x69GetR\xffndom",
        b"\xff",
        b"\x1c",
        b"\xba\x0f\xff\xff\xff",
        b"\x9b" + b"\xff" * 8,
        b"\x5b" + b"\x7f" * 8,
        b"\x81" * 4096,
        b"\xa1\x01" * 2048,
        b"\xd8\x1e" * 2048,
    ],
    ids=lambda data: data[:24].hex(),
)
def test_bytes_that_are_no_request_are_an_invalid_operation(nsm: Nsm, request_: bytes) -> None:
    before = nsm.state()

    assert nsm.handle(request_) == b"\xa1\x65Error\x70InvalidOperation"
    assert nsm.state() == before


@pytest.mark.parametrize("major", [0x40, 0x60, 0x80, 0xA0])
@pytest.mark.parametrize("width", range(24, 28))
def test_lengths_are_not_believed(nsm: Nsm, major: int, width: int) -> None:
    request = bytes([major | width]) + b"\x7f" * (1 << width - 24) + bytes(64)
    nsm.handle(request)
    tracemalloc.start()
    try:
        nsm.handle(request)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 0x4000


def test_a_request_longer_than_the_driver_sends_is_too_large(nsm: Nsm) -> None:
    head = b"\xa1\x69ExtendPCR\xa2\x65index\x10\x64data\x59"
    longest, too_long = (head + size.to_bytes(2, "big") + bytes(size) for size in (4069, 4070))

    assert len(longest) == 0x1000
    assert nsm.handle(longest).startswith(b"\xa1\x69ExtendPCR")
    assert nsm.handle(too_long) == b"\xa1\x65Error\x6dInputTooLarge"


def test_text_is_taken_for_bytes_and_unknown_parameters_are_ignored(nsm: Nsm) -> None:
    value = hashlib.sha384(ZERO + b"hello").digest()

    assert ask(nsm, {"ExtendPCR": {"index": 16, "data": "hello", "more": {"a": [1]}}}) == {
        "ExtendPCR": {"data": value}
    }


def test_pcrs_come_from_image_role_instance_and_certificate() -> None:
    nsm = Nsm(
        NsmConfig(
            pcrs={0: IMAGE[0]},
            role_arn=ROLE,
            instance_id="i-0123456789abcdef0",
            debug_mode=False,
        )
    )

    assert nsm.state().pcrs[0] == IMAGE[0]
    assert nsm.state().pcrs[3] == hashlib.sha384(ZERO + ROLE.encode()).digest()
    assert nsm.state().pcrs[4] == hashlib.sha384(ZERO + INSTANCE.encode()).digest()
    assert set(nsm.state().pcrs[5:]) == {ZERO}


def test_debug_mode_zeroes_what_measures_the_image() -> None:
    state = Nsm(
        NsmConfig(
            pcrs=IMAGE,
            role_arn=ROLE,
            instance_id="i-0123456789abcdef0",
            debug_mode=True,
        )
    ).state()

    assert [index for index, value in enumerate(state.pcrs) if value != ZERO] == [3, 4]
