"""What a guest's device may be told, and what it refuses."""

import pytest
from pydantic import ValidationError

from nitro_vsock import VsockConfig


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


def test_every_field_is_described() -> None:
    properties = VsockConfig.model_json_schema()["properties"]
    assert [name for name, schema in properties.items() if "description" not in schema] == []
