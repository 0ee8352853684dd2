import base64
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from containers import Container, digest
from nitro_eif import Architecture, EifFormatError, Image, RegistryError, UsageError, open_image
from nitro_eif.container.credentials import credentials
from nitro_eif.container.references import Reference


class FakeRegistry(ThreadingHTTPServer):
    """A registry that wants a token, fails now and then, and keeps its blobs on another server."""

    daemon_threads = True

    def __init__(self, container: Container) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.container = container
        self.top = container.manifest
        self.token: str | None = None
        self.scheme = "Bearer"
        self.failures: list[int] = []
        self.cut = 0
        self.elsewhere: str | None = None
        self.log: list[tuple[str, str | None]] = []
        self.answers: dict[str, bytes] = {}

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeRegistry

    def do_GET(self) -> None:
        registry, path = self.server, urlsplit(self.path)
        authorization = self.headers.get("Authorization")
        registry.log.append((path.path, authorization))
        if path.path in registry.answers:
            return self.answer(200, registry.answers[path.path])
        if path.path == "/token":
            assert parse_qs(path.query)["scope"] == ["repository:team/app:pull"]
            return self.answer(200, json.dumps({"token": registry.token}).encode())
        if path.path.startswith("/elsewhere/"):
            return self.answer(200, registry.container.blobs[path.path.rpartition("/")[2]])
        if registry.failures:
            return self.answer(registry.failures.pop(), b"")
        if registry.token is not None and authorization not in {f"Bearer {registry.token}", "Basic dTpw"}:
            challenge = f'{registry.scheme} realm="http://{registry.host}/token",service="fake"'
            return self.answer(401, b"", {"WWW-Authenticate": challenge})
        *_, kind, name = path.path.split("/")
        if kind == "manifests" and name == "1.2":
            return self.answer(200, registry.top)
        blob = registry.container.blobs.get(name)
        if blob is None or (kind == "blobs" and blob == registry.container.manifest):
            return self.answer(404, b"")
        if kind == "blobs" and registry.elsewhere:
            return self.answer(307, b"", {"Location": f"{registry.elsewhere}/elsewhere/{name}"})
        if registry.cut:
            registry.cut -= 1
            return self.answer(200, blob[:10], {"Content-Length": str(len(blob))})
        return self.answer(200, blob)

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRegistry]:
    monkeypatch.setattr("nitro_eif.container.registry.FIRST_DELAY_S", 0)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    with FakeRegistry(Container()) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def pull(registry: FakeRegistry, stack: ExitStack) -> Image:
    return open_image(f"docker://{registry.host}/team/app:1.2", Architecture.X86_64, stack)


def test_an_image_is_pulled(registry: FakeRegistry) -> None:
    with ExitStack() as stack:
        image = pull(registry, stack)

        assert bytes(image.unpack(stack)["bin/app"].data) == b"the application"
        assert image.name == f"{registry.host}/team/app:1.2"


def test_a_token_is_fetched_once_and_used(registry: FakeRegistry) -> None:
    registry.token = "secret-token"  # noqa: S105
    with ExitStack() as stack:
        pull(registry, stack).unpack(stack)

    assert [path for path, _ in registry.log].count("/token") == 1
    assert registry.log[-1][1] == "Bearer secret-token"


def test_a_login_is_used_for_the_token_and_for_basic_authentication(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    auth = base64.b64encode(b"u:p").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    registry.token = "token"  # noqa: S105
    with ExitStack() as stack:
        pull(registry, stack)
        assert ("/token", f"Basic {auth}") in registry.log
        registry.scheme = "Basic"
        registry.log.clear()
        pull(registry, stack)
    assert "/token" not in [path for path, _ in registry.log]


def test_credentials_do_not_follow_a_redirection(registry: FakeRegistry) -> None:
    registry.token = "token"  # noqa: S105
    registry.elsewhere = f"http://localhost:{registry.server_address[1]}"
    with ExitStack() as stack:
        pull(registry, stack).unpack(stack)

    assert {authorization for path, authorization in registry.log if path.startswith("/elsewhere/")} == {None}


def test_an_index_leads_to_the_manifest(registry: FakeRegistry) -> None:
    registry.top = registry.container.index()
    with ExitStack() as stack:
        assert pull(registry, stack).config.user == "app"


def test_passing_failures_and_broken_downloads_are_tried_again(registry: FakeRegistry) -> None:
    registry.failures = [503, 500]
    registry.cut = 2
    with ExitStack() as stack:
        pull(registry, stack).unpack(stack)


@pytest.mark.parametrize(
    ("failures", "reason"),
    [([404], "no such image"), ([403], "log in with"), ([503] * 9, "answers 503"), ([418], "answers 418")],
)
def test_refusals_say_what_to_do(registry: FakeRegistry, failures: list[int], reason: str) -> None:
    registry.failures = failures

    with ExitStack() as stack, pytest.raises(RegistryError) as caught:
        pull(registry, stack)

    assert reason in f"{caught.value} {caught.value.hint}"


def test_a_registry_that_sends_other_data_is_found_out(registry: FakeRegistry) -> None:
    name = digest(registry.container.config)
    for data in (registry.container.config[:-1] + b" ", registry.container.config + b" "):
        registry.container.blobs[name] = data
        with (
            ExitStack() as stack,
            pytest.raises((EifFormatError, RegistryError), match=r"the data are not|sends more"),
        ):
            pull(registry, stack)


def test_a_manifest_is_checked_against_the_digest_in_the_reference(registry: FakeRegistry) -> None:
    container = registry.container
    good, wrong = digest(container.manifest), digest(container.config)
    with ExitStack() as stack:
        open_image(f"docker://{registry.host}/team/app@{good}", Architecture.X86_64, stack)
        container.blobs[wrong] = container.manifest + b" "
        with pytest.raises(EifFormatError, match="the data are not"):
            open_image(f"docker://{registry.host}/team/app@{wrong}", Architecture.X86_64, stack)


def test_a_registry_that_is_not_there(registry: FakeRegistry) -> None:
    with ExitStack() as stack, pytest.raises(RegistryError, match="cannot be reached"):
        open_image("docker://127.0.0.1:1/team/app:1.2", Architecture.X86_64, stack)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("alpine", "registry-1.docker.io/library/alpine:latest"),
        ("docker.io/team/app:1", "registry-1.docker.io/team/app:1"),
        ("team/app", "registry-1.docker.io/team/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("r.example:5000/a/b/c:x_1.2", "r.example:5000/a/b/c:x_1.2"),
        (f"r.example/a@sha256:{'0' * 64}", f"r.example/a@sha256:{'0' * 64}"),
        (f"r.example/a:1@sha256:{'0' * 64}", f"r.example/a@sha256:{'0' * 64}"),
    ],
)
def test_references_are_read_as_docker_does(text: str, full: str) -> None:
    assert str(Reference.parse(text)) == full


@pytest.mark.parametrize(
    "text", ["", "UPPER", "a b", "r.example/", "a:b/c", "a@sha256:0", "r.example/../x", "a:" + "x" * 129]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Reference.parse(text)


def test_only_registries_on_this_machine_are_local() -> None:
    hosts = {
        "localhost/a": True,
        "127.0.0.1:5000/a": True,
        "[::1]:5000/a": True,
        "127.example/a": False,
        "r.io/a": False,
    }
    assert {text: Reference.parse(text).is_local for text in hosts} == hosts


def test_broken_login_files_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for text in ("", "[]", '{"auths": []}', '{"auths": {"h": {"auth": "%%%"}}}', '{"auths": {"h": {}}}'):
        (tmp_path / "config.json").write_text(text)
        assert credentials("h") is None
