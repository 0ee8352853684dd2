"""What a guest's device may be told, and what it refuses."""

import pytest
from pydantic import ValidationError

from nitro_vsock import PlainVsockConfig, VsockConfig
from nitro_vsock.daemon.config import VmConfig


@pytest.mark.parametrize("cid", [0, 1, 2, 2**32 - 1, 2**32, 2**64 - 1, -1])
def test_reserved_cids_are_refused(cid: int) -> None:
    with pytest.raises(ValidationError, match="guest_cid"):
        VsockConfig(guest_cid=cid)


def test_a_guest_with_one_of_the_hosts_default_cids_finds_it_at_the_other() -> None:
    assert VsockConfig(guest_cid=16).local_cids == {2, 3}
    assert VsockConfig(guest_cid=3).local_cids == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guest_cid": 5, "host_cids": [2, 5]}, "choose another"),
        ({"host_cids": []}, "could reach nobody"),
        ({"source_cid": 4}, "not one of host_cids"),
        ({"buffer_size": 1}, "buffer_size"),
        ({"tx_buffer_size": 100}, "tx_buffer_size"),
        ({"ok_port": "both"}, "ok_port"),
    ],
)
def test_contradictions_and_unknown_keys_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VsockConfig.model_validate(options)


def refused(kind: type[VsockConfig], name: str, value: object) -> set[int | str]:
    """Which settings are wrong when one has this value."""
    try:
        kind.model_validate({name: value})
    except ValidationError as error:
        return {problem["loc"][0] if problem["loc"] else name for problem in error.errors()}
    return set()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("guest_cid", [3, 0xFFFF_FFFE], [2, 0xFFFF_FFFF]),
        ("tx_buffer_size", [4096, 16 << 20], [4095, (16 << 20) + 1]),
        ("connections_max", [1], [0]),
        ("half_open_max", [1], [0]),
        ("buffered_bytes_max", [1 << 20], [(1 << 20) - 1]),
        ("handshake_timeout_s", [0.001], [0]),
        ("connect_timeout_s", [0.001], [0]),
        ("close_timeout_s", [0.001], [0]),
        ("linger_timeout_s", [0.001], [0]),
        ("spin_us", [0, 10_000], [-1, 10_001]),
        ("queue_size", [2, 4, 32768], [0, 1, 3, 32769, 65536]),
        ("forward_cid", [0, 0xFFFF_FFFE], [-1, 0xFFFF_FFFF]),
        ("forward_listen", [[0, 0xFFFF_FFFE]], [[-1], [0xFFFF_FFFF]]),
        ("host_cids", [[2, 0xFFFF_FFFE]], [[1, 2], [2, 0xFFFF_FFFF]]),
        ("allow_uid", [[0, 0xFFFF_FFFE]], [[-1], [0xFFFF_FFFF]]),
        ("proxy", [["0=a:1"], ["4294967294=a:65535"]], [["4294967295=a:1"], ["1=a:0"], ["1=a:65536"]]),
    ],
)
def test_bounds(name: str, good: list[object], bad: list[object]) -> None:
    kind = VmConfig if name in VmConfig.__annotations__ and name != "guest_cid" else VsockConfig

    assert [refused(kind, name, value) for value in good] == [set()] * len(good)
    assert [refused(kind, name, value) for value in bad] == [{name}] * len(bad)


def test_what_is_so_when_nobody_says_otherwise() -> None:
    config, vm = VsockConfig(), VmConfig()

    assert (config.guest_cid, config.source_cid) == (16, None)
    assert config.host_cids == frozenset({2, 3})
    assert config.tx_buffer_size == 256 << 10
    assert (config.connections_max, config.half_open_max) == (1023, 64)
    assert config.buffered_bytes_max == 64 << 20
    assert (config.handshake_timeout_s, config.connect_timeout_s) == (2.0, 2.0)
    assert (config.close_timeout_s, config.linger_timeout_s) == (2.0, 30.0)
    assert (vm.guest_cid, vm.queue_size) == (3, 1024)


def test_every_field_is_described() -> None:
    properties = VsockConfig.model_json_schema()["properties"]
    assert [name for name, schema in properties.items() if "description" not in schema] == []


def test_the_plain_configuration_has_the_same_fields_and_defaults() -> None:
    assert PlainVsockConfig()._asdict() == VsockConfig().model_dump()
    assert PlainVsockConfig(guest_cid=3).local_cids == VsockConfig(guest_cid=3).local_cids
