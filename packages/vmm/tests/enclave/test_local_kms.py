"""The local KMS of an enclave: who reaches it, by which protocol, and whom it believes."""

import base64
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

pytest.importorskip("moto", reason="the KMS is an extra: pip install 'nitro-vmm[kms]'")

from nitro_nsm import Nsm, NsmClient, NsmConfig, Root, ensure_test_root
from nitro_nsm.kms.client import KmsRecipient
from nitro_nsm.kms.tls import authority_pem
from nitro_nsm.testing import seeded_entropy
from nitro_vmm import Enclave, EnclaveConfig, HostError, UsageError
from nitro_vmm.config import KmsSettings
from nitro_vmm.enclave.local_kms import LocalKms, kms_config, open_local_kms
from nitro_vmm.enclave.security import trust_of
from nitro_vmm.testing import FakeAccelerator

# The bounds as they are promised, so that those of the program are held against them.
CONNECTIONS_MAX = 256

ROLE = "arn:aws:iam::111122223333:role/enclave"
IMAGE = b"\1" * 48
SIGNATURE = "AWS4-HMAC-SHA256 Credential=AKIA/20260101/{}/kms/aws4_request, SignedHeaders=host, Signature=00"


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def config_with(kms: object = "", **more: object) -> EnclaveConfig:
    return EnclaveConfig.model_validate({"eif_path": "a.eif", "kms": kms, **more})


class Served:
    """A KMS that is served, and the enclave's ends of connections to it."""

    def __init__(self, kms: LocalKms) -> None:
        self.endpoint = kms.endpoint
        self.streams: list[trio.SocketStream] = []
        self._kms = kms

    def connect(self) -> trio.SocketStream:
        """A connection of the enclave's."""
        ours, theirs = socket.socketpair()
        self._kms.serve(theirs)
        self.streams.append(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        return self.streams[-1]


@asynccontextmanager
async def serving(config: EnclaveConfig) -> AsyncIterator[Served]:
    """The KMS of an enclave, without the enclave."""
    assert config.kms is not None
    with ExitStack() as resources:
        root = trust_of(config)
        kms = open_local_kms(config, config.kms, root, resources, lambda _: None)
        async with trio.open_nursery() as nursery:
            kms.start(nursery)
            served = Served(kms)
            yield served
            for stream in served.streams:
                await stream.aclose()
            nursery.cancel_scope.cancel()


async def ask(
    stream: trio.abc.Stream, operation: str, *, region: str = "us-east-1", **parameters: object
) -> Any:  # noqa: ANN401
    """Make a request, as AWS's clients do."""
    body = json.dumps(parameters).encode()
    head = (
        f"POST / HTTP/1.1\r\nHost: kms\r\nX-Amz-Target: TrentService.{operation}\r\n"
        f"Authorization: {SIGNATURE.format(region)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    await stream.send_all(head.encode() + body)
    answer = b""
    while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
        piece = await stream.receive_some()
        assert piece, answer
        answer += piece
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def test_http_and_https_are_at_the_same_port() -> None:
    config = config_with(region="eu-west-1")
    name = "kms.eu-west-1.amazonaws.com"
    async with serving(config) as kms:
        trusting = ssl.create_default_context(cadata=authority_pem().decode())
        plain = kms.connect()
        secure = trio.SSLStream(kms.connect(), trusting, server_hostname=name, https_compatible=True)

        made = await ask(plain, "CreateKey", region="eu-west-1")
        found = await ask(secure, "DescribeKey", region="eu-west-1", KeyId=made["KeyMetadata"]["KeyId"])

    assert found["KeyMetadata"]["Arn"] == made["KeyMetadata"]["Arn"]
    assert ":eu-west-1:" in made["KeyMetadata"]["Arn"]


async def test_programs_of_this_machine_reach_it_where_they_may() -> None:
    async with serving(config_with("listen=127.0.0.1:0")) as kms:
        assert kms.endpoint is not None
        async with await trio.open_tcp_stream(kms.endpoint.host, kms.endpoint.port) as stream:
            made = await ask(stream, "CreateKey")
        seen_inside = await ask(kms.connect(), "ListKeys")

    assert [key["KeyId"] for key in seen_inside["Keys"]] == [made["KeyMetadata"]["KeyId"]]


async def decrypted_for(kms: Served, root: Root) -> Any:  # noqa: ANN401
    """What the KMS answers to an enclave whose documents a root signs."""
    nsm = Nsm(NsmConfig(pcrs={0: IMAGE}), root=root, entropy=seeded_entropy(1))
    recipient = KmsRecipient(NsmClient(nsm.handle))
    parameter = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in recipient.parameter().items()
    }
    stream = kms.connect()
    key = await ask(stream, "CreateKey")
    plaintext = base64.b64encode(b"secret").decode()
    sealed = await ask(stream, "Encrypt", KeyId=key["KeyMetadata"]["KeyId"], Plaintext=plaintext)
    answer = await ask(stream, "Decrypt", CiphertextBlob=sealed["CiphertextBlob"], Recipient=parameter)
    if "CiphertextForRecipient" not in answer:
        return answer
    return recipient.open(base64.b64decode(answer["CiphertextForRecipient"]))


async def test_it_believes_the_root_that_signs_the_enclaves_documents(tmp_path: Path) -> None:
    own = Root.create("own", entropy=seeded_entropy(2))
    (tmp_path / "own.pem").write_bytes(own.pem())
    async with (
        serving(config_with()) as with_test_root,
        serving(config_with(root_key=tmp_path / "own.pem")) as with_own,
    ):
        secrets = [
            await decrypted_for(with_test_root, ensure_test_root()),
            await decrypted_for(with_own, own),
        ]
        refused = await decrypted_for(with_own, ensure_test_root())

    assert secrets == [b"secret", b"secret"]
    assert refused["message"] == "The attestation document is not valid: certificates."


def test_what_is_not_given_follows_the_enclave() -> None:
    alone, with_role, own = (
        kms_config(config, config.kms or KmsSettings())
        for config in (
            config_with(),
            config_with(role_arn=ROLE, region="eu-west-1"),
            config_with({"region": "us-west-2", "account": "444455556666"}, region="eu-west-1"),
        )
    )

    assert (alone.region, alone.caller) == ("us-east-1", None)
    assert (with_role.region, with_role.caller, with_role.account) == ("eu-west-1", ROLE, "111122223333")
    assert (own.region, own.account) == ("us-west-2", "444455556666")


async def test_keys_are_kept_from_one_run_to_the_next(tmp_path: Path) -> None:
    config = config_with({"state_path": tmp_path / "keys.json"})
    async with serving(config) as kms:
        made = await ask(kms.connect(), "CreateKey")

    async with serving(config) as kms:
        found = await ask(kms.connect(), "ListKeys")

    assert [key["KeyId"] for key in found["Keys"]] == [made["KeyMetadata"]["KeyId"]]


@pytest.mark.parametrize(
    "said", [b"", b"\x16", b"\x16\x03\x01\x00\x05hello", b"\x00" * 70_000, b"POST / HTTP/1.1\r\n"]
)
async def test_who_talks_nonsense_and_leaves_harms_nobody(said: bytes) -> None:
    async with serving(config_with()) as kms:
        stream = kms.connect()
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            await stream.send_all(said)
            await stream.send_eof()
            while await stream.receive_some():
                pass
        await stream.aclose()

        assert (await ask(kms.connect(), "ListKeys"))["Keys"] == []


async def test_why_a_connection_breaks_off_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        async with serving(config_with()) as kms:
            stream = kms.connect()
            await stream.send_all(b"\x16\x03\x01\x00\x05hello")
            with trio.fail_after(30), suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass

    (said,) = [each.getMessage() for each in caplog.records if "broke off" in each.getMessage()]
    assert "SSL" in said, "the reason, and not only that there was one"


async def test_an_idle_connection_is_closed(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    began = autojump_clock.current_time()
    with caplog.at_level("INFO"):
        async with serving(config_with()) as kms:
            ended = await kms.connect().receive_some()
            seconds = autojump_clock.current_time() - began

    assert ended == b""
    assert seconds == pytest.approx(60)
    assert "a connection to the KMS was idle for 60 seconds" in caplog.text


async def test_a_guest_cannot_open_connections_without_bound(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(config_with()) as kms:
        held = [kms.connect() for _ in range(CONNECTIONS_MAX)]
        await trio.testing.wait_all_tasks_blocked()
        one_more = kms.connect()
        answer = await one_more.receive_some()
        await held.pop().aclose()
        await trio.testing.wait_all_tasks_blocked()
        served = await ask(kms.connect(), "ListKeys")

    assert answer == b""
    assert f"the KMS has {CONNECTIONS_MAX} connections" in caplog.text
    assert served["Keys"] == []


async def test_an_enclave_has_its_kms_for_as_long_as_it_lives(image: Path) -> None:
    config = EnclaveConfig.model_validate({"eif_path": image, "kms": "listen=127.0.0.1:0"})
    async with Enclave(config, accelerator=FakeAccelerator(lambda vcpu: vcpu.wait_for_kick())) as enclave:
        assert enclave.kms_endpoint is not None
        stream = await trio.open_tcp_stream(enclave.kms_endpoint.host, enclave.kms_endpoint.port)
        async with stream:
            keys = (await ask(stream, "ListKeys"))["Keys"]
        port = enclave.kms_endpoint.port

    assert keys == []
    with pytest.raises(OSError, match=r"connect"):
        await trio.open_tcp_stream("127.0.0.1", port)


@pytest.mark.parametrize("options", [{"kms": "port=9000"}, {"kms": "port=3128", "allow": ["a:443"]}])
async def test_a_port_has_one_server(image: Path, options: dict[str, object]) -> None:
    config = EnclaveConfig.model_validate({"eif_path": image, **options})

    with pytest.raises(UsageError, match=r"port \d+ of the parent is in use"):
        async with Enclave(config):
            pass


async def test_an_address_in_use_is_an_error_of_the_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = config_with(f"listen=127.0.0.1:{taken.getsockname()[1]}")

        with pytest.raises(HostError, match="cannot serve the KMS at 127"):
            async with serving(config):
                pass


async def test_the_extra_is_asked_for_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nitro_nsm.kms.server", None)

    with pytest.raises(HostError, match="a local KMS needs") as caught:
        async with serving(config_with()):
            pass

    assert caught.value.hint == "pip install 'nitro-vmm[kms]'"
