"""A container registry on this machine, for tests: it asks for tokens, fails when told to."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from containers import Container


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
