"""What a module needs before its first document is there without cryptography and pydantic."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nitro_nsm import (
    ErrorCode,
    InputError,
    Nsm,
    NsmClient,
    NsmConfig,
    PlainNsmConfig,
    Refusal,
    Root,
    StoredRoot,
    ensure_test_root,
    stored_test_root,
    verify,
)
from nitro_nsm.pki.store import root_path

REGISTERS = {0: b"\7" * 48}
LIGHT = """
import sys
from nitro_nsm import Nsm, NsmClient, PlainNsmConfig, stored_test_root

client = NsmClient(Nsm(PlainNsmConfig(), root=stored_test_root()).handle)
client.describe_nsm(), client.describe_pcr(0), client.extend_pcr(16, b"data"), client.get_random()
print(sorted({"cryptography", "pydantic"} & set(sys.modules)))
"""


def test_all_but_documents_is_there_without_what_takes_long_to_import(tmp_path: Path) -> None:
    ensure_test_root(tmp_path / "nitro-nsm")

    done = subprocess.run(
        [sys.executable, "-c", LIGHT],
        env={"XDG_DATA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "[]\n"


def test_the_plain_configuration_has_the_same_fields_and_defaults() -> None:
    assert NsmConfig().plain() == PlainNsmConfig()
    assert set(PlainNsmConfig._fields) == set(NsmConfig.model_fields) - {"signing_certificate"}


def test_a_stored_root_names_the_module_and_signs_as_the_root_does(tmp_path: Path) -> None:
    root = ensure_test_root(tmp_path)

    stored = stored_test_root(tmp_path)
    module = Nsm(PlainNsmConfig(pcrs=REGISTERS, enclave_id="0" * 16), root=stored)
    document = NsmClient(module.handle).attest()

    assert isinstance(stored, StoredRoot)
    assert module.module_id == Nsm(NsmConfig(enclave_id="0" * 16), root=root).module_id
    assert verify(document, at=datetime.now(UTC), root=root.trust).pcrs[0] == REGISTERS[0]
    assert module.state() == Nsm(NsmConfig(pcrs=REGISTERS, enclave_id="0" * 16), root=root).state()


def test_a_root_is_made_where_none_is_stored(tmp_path: Path) -> None:
    assert isinstance(stored_test_root(tmp_path), Root)
    assert isinstance(stored_test_root(tmp_path), StoredRoot)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda pem: pem[:-30],
        lambda pem: pem[:300],
        lambda pem: pem.replace(b"\nM", b"\n*"),
        lambda pem: pem.replace(b"BEGIN CERT", b"BEGIN KERT"),
        lambda pem: pem[:-60] + pem[-55:],
    ],
)
def test_a_file_that_does_not_look_right_is_refused_at_once(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    root_path(tmp_path).write_bytes(damage(ensure_test_root(tmp_path).pem()))

    with pytest.raises(InputError, match=r"test-root\.pem"):
        stored_test_root(tmp_path)


def client_of_a_damaged_root(directory: Path) -> NsmClient:
    pem = ensure_test_root(directory).pem()
    middle = pem.index(b"CERTIFICATE") + 400
    root_path(directory).write_bytes(pem[:middle] + b"AAAA" + pem[middle + 4 :])
    return NsmClient(Nsm(PlainNsmConfig(), root=stored_test_root(directory)).handle)


def test_damage_that_only_shows_later_refuses_documents_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of_a_damaged_root(tmp_path)

    with pytest.raises(Refusal) as caught:
        client.attest()

    assert caught.value.code is ErrorCode.INTERNAL_ERROR
    assert "no document can be signed" in caplog.text
    assert "nsm pki rotate" in caplog.text
    assert len(client.get_random()) == 256


def test_damage_is_logged_once_however_often_a_guest_asks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of_a_damaged_root(tmp_path)

    codes = []
    for _ in range(3):
        with pytest.raises(Refusal) as caught:
            client.attest()
        codes.append(caught.value.code)

    assert codes == [ErrorCode.INTERNAL_ERROR] * 3
    assert len(caplog.records) == 1
