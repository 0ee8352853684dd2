"""The KMS as clients meet it: AWS's protocol over HTTP and HTTPS, TCP and unix sockets, by boto3 and by
hand."""

import asyncio
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

boto3 = pytest.importorskip("boto3", reason="the extra `kms` is not installed")

from botocore.config import Config  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402

import kms_hostile  # noqa: E402
from kms_hostile import CREDENTIAL, http  # noqa: E402
from kms_world import IMAGE, OPEN, ROLE, ROOT, Clock, attested_policy, kms_of  # noqa: E402
from nitro_nsm import HostError, InputError, Nsm, NsmClient, NsmConfig, UsageError  # noqa: E402
from nitro_nsm.cli import main  # noqa: E402
from nitro_nsm.commands.kms import tcp_addresses  # noqa: E402
from nitro_nsm.kms.client import KmsRecipient  # noqa: E402
from nitro_nsm.kms.config import KmsConfig  # noqa: E402
from nitro_nsm.kms.http import BODY_BYTES_MAX, Conversation  # noqa: E402
from nitro_nsm.kms.server import answer_stream, open_kms, serve  # noqa: E402
from nitro_nsm.kms.tls import authority_path, authority_pem, server_context  # noqa: E402

CONDITION = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": IMAGE[0].hex()}}


@contextmanager
def running(config: KmsConfig, **where: Any) -> Iterator[list[str]]:  # noqa: ANN401
    """A KMS in a thread."""
    started, found = threading.Event(), list[str]()
    stop: list[Callable[[], object]] = []
    failures: list[BaseException] = []

    def ready(addresses: list[str]) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        found.extend(addresses)
        started.set()

    def run() -> None:
        try:
            asyncio.run(serve(open_kms(config, ROOT.trust), ready=ready, **where))
        except asyncio.CancelledError:
            pass
        except HostError as error:
            failures.append(error)
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        if failures:
            raise failures[0]
        yield found
    finally:
        for call in stop:
            call()
        thread.join()


def client(endpoint: str, **more: Any) -> Any:  # noqa: ANN401
    return boto3.client(
        "kms",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="AKIAEXAMPLE",
        aws_secret_access_key="secret",  # noqa: S106
        config=Config(retries={"total_max_attempts": 1}),
        **more,
    )


def recipient(**config: Any) -> KmsRecipient:  # noqa: ANN401
    return KmsRecipient(NsmClient(Nsm(NsmConfig.model_validate({"pcrs": IMAGE} | config), root=ROOT).handle))


def test_boto3_gets_a_secret_for_the_right_image_and_for_no_other() -> None:
    with running(KmsConfig(caller=ROLE), tcp=[("127.0.0.1", 0)]) as (address,):
        kms = client(address)
        key_id = kms.create_key(Policy=attested_policy(CONDITION))["KeyMetadata"]["KeyId"]
        kms.create_alias(AliasName="alias/app", TargetKeyId=key_id)
        blob = kms.encrypt(KeyId="alias/app", Plaintext=b"the secret")["CiphertextBlob"]
        enclave = recipient()

        answer = kms.decrypt(CiphertextBlob=blob, Recipient=enclave.parameter())
        with pytest.raises(ClientError) as caught:
            kms.decrypt(CiphertextBlob=blob, Recipient=recipient(pcrs={0: bytes([9]) * 48}).parameter())
        kms.close()

    assert enclave.open(answer["CiphertextForRecipient"]) == b"the secret"
    assert "Plaintext" not in answer
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    assert "is not authorized to perform: kms:Decrypt" in caught.value.response["Error"]["Message"]


def test_https_as_a_region_of_aws(tmp_path: Path) -> None:
    bundle = tmp_path / "authority.pem"
    bundle.write_bytes(authority_pem(tmp_path))
    tls = server_context("us-east-1", directory=tmp_path)
    with running(KmsConfig(), tcp=[("127.0.0.1", 0)], tls=tls) as (address,):
        kms = client(address, verify=str(bundle))
        assert len(kms.generate_random(NumberOfBytes=7)["Plaintext"]) == 7
        kms.close()
        port = int(address.rpartition(":")[2])
        context = ssl.create_default_context(cafile=str(bundle))
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="kms.us-east-1.amazonaws.com") as connection,
        ):
            connection.sendall(http("ListKeys", b"{}"))
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")

    assert stat.S_IMODE(authority_path(tmp_path).stat().st_mode) == 0o600
    assert authority_pem(tmp_path) == bundle.read_bytes()


def test_a_unix_socket_of_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "app.vsock_8000"
    with running(KmsConfig(), unix=[path]), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        mode = stat.S_IMODE(path.stat().st_mode)
        connection.sendall(http("ListKeys", b"{}"))
        answer = connection.recv(1000)

    assert mode == 0o600
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert not path.exists()


async def _served(connection: socket.socket) -> None:
    await answer_stream(open_kms(KmsConfig(), ROOT.trust), connection)


def test_a_connection_that_was_accepted_elsewhere() -> None:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=lambda: asyncio.run(_served(theirs)))
    thread.start()
    with ours:
        ours.sendall(http("ListKeys", b"{}"))
        ours.shutdown(socket.SHUT_WR)
        answer = ours.makefile("rb").read()
    thread.join()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"Keys": []' in answer


@pytest.mark.parametrize(
    ("listen", "elsewhere", "found"),
    [
        ([], False, [("127.0.0.1", 8000)]),
        ([], True, []),
        (["81"], True, [("127.0.0.1", 81)]),
        (["81", "[::1]:82"], False, [("127.0.0.1", 81), ("::1", 82)]),
        (["example.com:65535"], False, [("example.com", 65535)]),
    ],
)
def test_where_it_listens(listen: list[str], *, elsewhere: bool, found: list[tuple[str, int]]) -> None:
    assert tcp_addresses(listen, elsewhere=elsewhere) == found


@pytest.mark.parametrize("text", ["", "a", "a:b", "65536", "-1", "a:"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        tcp_addresses([text], elsewhere=False)


def test_an_address_in_use_is_the_hosts_fault() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(HostError, match="cannot listen"),
        running(KmsConfig(), tcp=[("127.0.0.1", other.getsockname()[1])]),
    ):
        pass


def test_keys_are_kept_in_a_file_of_its_owner(tmp_path: Path) -> None:
    config = KmsConfig(state_path=tmp_path / "keys.json")
    kms = open_kms(config, ROOT.trust)
    made: Any = kms.handle("CreateKey", {}, access_key="AKIA")

    again: Any = open_kms(config, ROOT.trust).handle("ListKeys", {}, access_key="AKIA")

    assert [key["KeyId"] for key in again["Keys"]] == [made["KeyMetadata"]["KeyId"]]
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_two_that_keep_their_keys_in_one_file_lose_none(tmp_path: Path) -> None:
    config = KmsConfig(state_path=tmp_path / "keys.json")
    one, other = open_kms(config, ROOT.trust), open_kms(config, ROOT.trust)
    for _ in range(2):
        one.handle("CreateKey", {}, access_key="AKIA")

    with pytest.raises(HostError, match="changed by another KMS") as caught:
        other.handle("CreateKey", {}, access_key="AKIA")
    kept: Any = open_kms(config, ROOT.trust).handle("ListKeys", {}, access_key="AKIA")

    assert len(kept["Keys"]) == 2
    assert caught.value.hint


def test_a_state_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys.json")

    with pytest.raises(InputError, match="not a regular file"):
        open_kms(KmsConfig(state_path=tmp_path / "keys.json"), ROOT.trust)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", '{"version": 1}', '{"version": 1, "keys": [{}]}', "[" * 100_000),
        *('{"version": 2, "keys": []}', '{"version": 1, "keys": {}}'),
    ],
)
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)

    with pytest.raises(InputError, match="has no keys"):
        open_kms(KmsConfig(state_path=tmp_path / "keys.json"), ROOT.trust)


def test_a_place_where_keys_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot be read"):
        open_kms(KmsConfig(state_path=tmp_path / "file" / "keys.json"), ROOT.trust)
    kms = open_kms(KmsConfig(state_path=tmp_path / "missing" / "keys.json"), ROOT.trust)
    with pytest.raises(HostError, match="cannot be written"):
        kms.handle("CreateKey", {}, access_key="AKIA")


@pytest.fixture
def conversation() -> Conversation:
    return Conversation(kms_of(Clock()))


def answered(conversation: Conversation, sent: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = conversation.receive(sent).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_several_requests_on_one_connection(conversation: Conversation) -> None:
    first = answered(conversation, http("ListKeys", b"{}"))
    second = answered(conversation, http("GenerateRandom", b'{"NumberOfBytes": 1}'))

    assert (first[0], second[0]) == (200, 200)
    assert not conversation.closed


def test_a_request_in_any_pieces(conversation: Conversation) -> None:
    request = http("ListKeys", b"{}")

    received = b"".join(conversation.receive(request[index : index + 1]) for index in range(len(request)))

    assert received.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (http("Nothing", b"{}"), 400, "UnknownOperationException"),
        (http("ListKeys", b"{}").replace(b"TrentService.", b"Other."), 400, "UnknownOperationException"),
        (http("ListKeys", b"{}").replace(b"POST", b"GET"), 400, "UnknownOperationException"),
        (http("ListKeys", b"{"), 400, "SerializationException"),
        (http("ListKeys", b"[" * 50_000), 400, "SerializationException"),
        (http("ListKeys", b"[]"), 400, "SerializationException"),
        (http("ListKeys", b"{}", authorization=""), 400, "MissingAuthenticationTokenException"),
        (http("ListKeys", b"{}", authorization="Bearer x"), 400, "IncompleteSignatureException"),
        (
            http("ListKeys", b"{}", authorization=CREDENTIAL.replace("us-east-1", "eu-west-1")),
            400,
            "InvalidSignatureException",
        ),
        (
            http("ListKeys", b"{}", authorization=CREDENTIAL.replace("/kms/", "/s3/")),
            400,
            "InvalidSignatureException",
        ),
        (b"nonsense\r\n\r\n", 400, "SerializationException"),
        (http("ListKeys", bytes(BODY_BYTES_MAX + 1)), 413, "SerializationException"),
        (http("ListKeys", bytes(0x40000)), 400, "SerializationException"),
        (http("ListKeys", bytes(0x40001)), 413, "SerializationException"),
    ],
    ids=lambda value: value[:60] if isinstance(value, bytes) else None,
)
def test_bad_requests(conversation: Conversation, sent: bytes, status: int, kind: str) -> None:
    found, answer = answered(conversation, sent)

    assert (found, answer["__type"]) == (status, kind)


def test_a_client_that_waits_for_leave_to_go_on(conversation: Conversation) -> None:
    request = http("ListKeys", b"{}").replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")

    assert conversation.receive(request[:-2]).startswith(b"HTTP/1.1 100 ")
    assert conversation.receive(request[-2:]).startswith(b"HTTP/1.1 200 ")


def test_a_denial_is_logged_with_its_reason_and_the_client_hears_less(
    conversation: Conversation, caplog: pytest.LogCaptureFixture
) -> None:
    policy = json.dumps({"Policy": attested_policy(CONDITION)}).encode()
    _, made = answered(conversation, http("CreateKey", policy))
    body = json.dumps({"KeyId": made["KeyMetadata"]["KeyId"], "KeySpec": "AES_256"}).encode()

    _, answer = answered(conversation, http("GenerateDataKey", body))

    assert answer["__type"] == "AccessDeniedException"
    assert "RecipientAttestation" not in answer["Message"]
    assert "GenerateDataKey refused: AccessDeniedException" in caplog.text
    assert "(PCR0) does not hold, the request has nothing" in caplog.text


def test_keys_that_cannot_be_saved_are_not_promised() -> None:
    def full() -> None:
        raise HostError("the disk is full")

    kms = kms_of(Clock())
    kms.changed = full

    status, answer = answered(Conversation(kms), http("CreateKey", b"{}"))

    assert (status, answer["__type"]) == (500, "KMSInternalException")


def test_mutated_requests_get_answers() -> None:
    """A small part of `python kms_hostile.py 100000`."""
    kms_hostile.attack(1000, seed=7)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(home: Path, number: signal.Signals) -> None:
    arguments = ["kms", "serve", "--listen", "0", "--socket", "kms.sock", "--state", "keys.json", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nitro_nsm.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"XDG_DATA_HOME": str(home)},
        text=True,
    )
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    kms = client(said["addresses"][0])

    assert kms.create_key(Policy=OPEN)["KeyMetadata"]["Enabled"]
    kms.close()
    process.send_signal(number)
    out, error = process.communicate()

    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in error
    assert said["addresses"][1] == "unix:kms.sock"
    assert said["root"] == "test"
    assert not Path("kms.sock").exists()
    assert Path("keys.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["serve", "--listen", "nowhere"], 2, "is not an address"),
        (["serve", "--listen", "127.0.0.1:70000"], 2, "is not an address"),
        (["serve", "--caller", "me"], 2, "caller: String should match"),
        (["serve", "--max-age", "-1"], 2, "max_age_s"),
        (["serve", "--root", "missing"], 4, "missing cannot be read"),
        (["serve", "--config", "missing"], 4, "missing cannot be read"),
        (["serve", "--socket", "missing/kms.sock"], 4, "cannot listen on missing/kms.sock"),
    ],
)
def test_mistakes(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, why: str
) -> None:
    assert main(["kms", *arguments]) == code
    assert why in capsys.readouterr().err


def test_the_command_prints_its_authority(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kms", "authority"]) == 0
    assert capsys.readouterr().out.encode() == authority_pem()
    assert main(["kms", "authority", "--json"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"pem": authority_pem().decode()}
    assert shown.startswith('{\n  "pem"')
    assert shown.endswith("}\n")


def test_the_command_says_what_it_lacks(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h11", None)
    for name in [name for name in sys.modules if name.startswith("nitro_nsm.kms.")]:
        monkeypatch.delitem(sys.modules, name)

    assert main(["kms", "serve"]) == 4
    assert "pip install 'nitro-nsm[kms]'" in capsys.readouterr().err
