"""What a registry's client does when things go wrong: how often it asks, how long it waits, what it takes."""

import json
import socketserver
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from containers import digest
from fake_registry import FakeRegistry
from nitro_eif import Architecture, RegistryError, open_image
from nitro_eif.container.references import Reference
from nitro_eif.container.registry import TRIES, Registry, _Redirects
from nitro_eif.json_text import JSON_BYTES_MAX


class Client:
    """A registry's client whose waits are noted rather than waited for."""

    def __init__(self, server: FakeRegistry, stack: ExitStack, version: str = "1.2") -> None:
        separator = "@" if ":" in version else ":"
        self.server = server
        self.waits_s: list[float] = []
        self.registry = Registry(
            Reference.parse(f"{server.host}/team/app{separator}{version}"), stack, sleep=self.waits_s.append
        )

    @property
    def requests(self) -> int:
        return len(self.server.log)


@pytest.fixture
def client(registry: FakeRegistry) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr("nitro_eif.container.registry.FIRST_DELAY_S", 0.5)
        yield Client(registry, stack)


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again_after_longer_and_longer_waits(client: Client, code: int) -> None:
    client.server.failures = [code] * (TRIES - 1)

    data = client.registry.root().document

    assert data == client.server.top
    assert client.waits_s == [0.5, 1.0, 2.0]
    assert client.requests == TRIES == 4


def test_a_failure_that_does_not_pass_is_given_up_after_four_tries(client: Client) -> None:
    client.server.failures = [503] * TRIES

    with pytest.raises(RegistryError, match="answers 503"):
        client.registry.root()

    assert client.waits_s == [0.5, 1.0, 2.0]
    assert client.requests == 4


@pytest.mark.parametrize("code", [400, 403, 404, 410, 418, 501, 505])
def test_a_refusal_is_not_tried_again(client: Client, code: int) -> None:
    client.server.failures = [code]

    with pytest.raises(RegistryError, match=str(code)):
        client.registry.root()

    assert (client.waits_s, client.requests) == ([], 1)


def test_a_second_401_is_final(client: Client) -> None:
    client.server.token = "token"  # noqa: S105
    client.server.failures = []
    accepted = client.server.token
    client.server.token = accepted + "x"
    answer = json.dumps({"token": "old"}).encode()
    client.server.answers["/token"] = answer

    with pytest.raises(RegistryError, match="access denied"):
        client.registry.root()

    assert client.requests == 3
    assert client.waits_s == []


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_download_that_breaks_off_is_tried_again(client: Client, cut: int) -> None:
    client.server.cut = cut
    config = client.server.container.config

    assert bytes(client.registry.blob(digest(config), len(config))) == config
    assert client.waits_s == [0.5, 1.0, 2.0][:cut]


def test_a_download_that_always_breaks_off_is_given_up(client: Client) -> None:
    client.server.cut = 9
    config = client.server.container.config

    with pytest.raises(RegistryError, match="broke off"):
        client.registry.blob(digest(config), len(config))

    assert client.waits_s == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("surplus", [1, 2, 1 << 20])
def test_a_blob_may_not_be_longer_than_the_manifest_says(client: Client, surplus: int) -> None:
    blob = bytes((1 << 20) + surplus)
    client.server.container.blobs[digest(blob)] = blob

    assert len(client.registry.blob(digest(blob), len(blob))) == len(blob)
    with pytest.raises(RegistryError, match=f"more than the {len(blob) - surplus} bytes"):
        client.registry.blob(digest(blob), len(blob) - surplus)


def test_a_manifest_may_have_four_mebibytes_and_no_more(client: Client) -> None:
    client.server.top = b" " * JSON_BYTES_MAX

    assert len(client.registry.root().document) == JSON_BYTES_MAX == 4 << 20
    client.server.top += b" "
    with pytest.raises(RegistryError, match="more than 4194304 bytes"):
        client.registry.root()


def test_a_blob_without_a_size_may_be_shorter_than_the_limit(client: Client) -> None:
    config = client.server.container.config

    assert bytes(client.registry.blob(digest(config), None)) == config
    assert client.waits_s == []


def test_progress_counts_up_to_the_size(client: Client) -> None:
    seen: list[tuple[int, int]] = []
    blob = bytes((2 << 20) + 1)
    client.server.container.blobs[digest(blob)] = blob
    with ExitStack() as stack:
        place = Reference.parse(f"{client.server.host}/team/app:1.2")
        Registry(place, stack, progress=lambda done, total: seen.append((done, total))).blob(
            digest(blob), len(blob)
        )

    assert seen[-1] == (len(blob), len(blob))
    assert all(total == len(blob) for _, total in seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": ""}', b'{"token": "a b"}', b'{"token": "a\\n"}'],
)
def test_a_token_service_that_answers_nonsense_is_named(client: Client, answer: bytes) -> None:
    client.server.token = "token"  # noqa: S105
    client.server.answers["/token"] = answer

    with pytest.raises(RegistryError, match=r"/token\?.*the token service"):
        client.registry.root()


def test_a_token_may_be_called_access_token(client: Client) -> None:
    client.server.token = "token"  # noqa: S105
    client.server.answers["/token"] = b'{"access_token": "token"}'

    assert client.registry.root().document == client.server.top


def test_other_authentication_is_refused(client: Client) -> None:
    client.server.token = "token"  # noqa: S105
    client.server.scheme = "Digest"

    with pytest.raises(RegistryError, match="wants Digest authentication"):
        client.registry.root()


def test_a_login_is_asked_for_where_the_registry_wants_a_password(client: Client) -> None:
    client.server.token = "token"  # noqa: S105
    client.server.scheme = "Basic"

    with pytest.raises(RegistryError, match="user and password") as caught:
        client.registry.root()
    assert "docker login" in caught.value.hint


def test_https_is_never_left_for_http() -> None:
    request = urllib.request.Request("https://r.example/v2/a/blobs/b")

    def redirect(*, plain: bool, to: str) -> urllib.request.Request | None:
        return _Redirects(plain=plain).redirect_request(request, None, 307, "", {}, to)

    assert redirect(plain=False, to="https://cdn.example/x") is not None
    assert redirect(plain=True, to="http://cdn.example/x") is not None
    with pytest.raises(urllib.error.URLError, match="not HTTPS"):
        redirect(plain=False, to="http://cdn.example/x")


def test_names_of_255_bytes_are_the_longest() -> None:
    assert Reference.parse(f"r.example/{'a' * 255}").name == "a" * 255
    with pytest.raises(Exception, match="not an image reference"):
        Reference.parse(f"r.example/{'a' * 256}")
    assert Reference.parse(f"r.example/a:{'t' * 128}").version == "t" * 128


def test_an_unreachable_registry_is_not_asked_four_times() -> None:
    waits_s: list[float] = []
    with ExitStack() as stack:
        registry = Registry(Reference.parse("127.0.0.1:1/a"), stack, sleep=waits_s.append)
        with pytest.raises(RegistryError, match="cannot be reached"):
            registry.root()
    assert waits_s == []


def test_a_registry_is_asked_for_one_image_only_once_each(registry: FakeRegistry) -> None:
    with ExitStack() as stack:
        open_image(f"docker://{registry.host}/team/app:1.2", Architecture.X86_64, stack).unpack(stack)

    paths = [path for path, _ in registry.log]
    assert len(paths) == len(set(paths)) == 4


class Flaky(socketserver.ThreadingTCPServer):
    """Hangs up on some requests, then answers each with an empty manifest."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, hang_ups: int) -> None:
        super().__init__(("127.0.0.1", 0), _FlakyHandler)
        self.hang_ups = hang_ups
        self.requests = 0


class _FlakyHandler(socketserver.StreamRequestHandler):
    server: Flaky

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        self.server.requests += 1
        if self.server.requests > self.server.hang_ups:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


@pytest.mark.parametrize(("hang_ups", "waits_s"), [(0, []), (1, [0.5]), (3, [0.5, 1.0, 2.0])])
def test_a_connection_that_breaks_is_made_again(hang_ups: int, waits_s: list[float]) -> None:
    waited_s: list[float] = []
    with ExitStack() as stack, Flaky(hang_ups) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        place = Reference.parse(f"127.0.0.1:{server.server_address[1]}/a")

        assert Registry(place, stack, sleep=waited_s.append).root().document == b"{}"
        server.shutdown()

    assert waited_s == waits_s


def test_a_connection_that_always_breaks_is_given_up() -> None:
    waited_s: list[float] = []
    with ExitStack() as stack, Flaky(99) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        place = Reference.parse(f"127.0.0.1:{server.server_address[1]}/a")

        with pytest.raises(RegistryError, match="cannot be reached"):
            Registry(place, stack, sleep=waited_s.append).root()
        server.shutdown()

    assert waited_s == [0.5, 1.0, 2.0]
    assert server.requests == 4


@pytest.mark.parametrize(
    ("code", "reason", "hint"),
    [
        (401, "access denied", "docker login"),
        (403, "access denied", "docker login"),
        (404, "no such image", ""),
        (429, "too many requests", "wait"),
    ],
)
def test_each_refusal_says_what_to_do(client: Client, code: int, reason: str, hint: str) -> None:
    client.server.failures = [code] * TRIES
    if code == 401:
        client.server.token = "token"  # noqa: S105
        client.server.answers["/token"] = b'{"token": "other"}'
        client.server.failures = []

    with pytest.raises(RegistryError, match=reason) as caught:
        client.registry.root()

    assert hint in caught.value.hint
