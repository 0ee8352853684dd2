"""Images are taken from where users have them, or an error says how to bring them here."""

import base64
import io
import json
import socketserver
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from containers import Container
from nitro_eif import Architecture, EifFormatError, HostError, Image, Tree, UsageError, open_image
from nitro_eif.container.credentials import credentials
from nitro_eif.container.docker import IMAGE_BYTES_MAX
from nitro_eif.filesystem.tar import apply_tar
from nitro_eif.testing import tar_member, tar_of


def opened(source: str, stack: ExitStack) -> Image:
    return open_image(source, Architecture.X86_64, stack)


class Daemon(socketserver.ThreadingUnixStreamServer):
    """A Docker daemon that has one image."""

    def __init__(self, path: Path, archive: bytes) -> None:
        super().__init__(str(path), _DaemonHandler)
        self.archive = archive
        self.asked: list[str] = []


class _DaemonHandler(socketserver.StreamRequestHandler):
    server: Daemon

    def handle(self) -> None:
        line = self.rfile.readline().decode().split()[1]
        while self.rfile.readline().strip():
            pass
        self.server.asked.append(line)
        found = line == "/images/team%2Fapp%3A1.2/get"
        body = self.server.archive if found else b'{"message": "No such image: x"}'
        status = "200 OK" if found else "404 Not Found"
        self.wfile.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        )
        self.wfile.write(body)


def test_an_image_of_a_docker_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Container().docker_archive(tmp_path / "saved.tar").read_bytes()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/d.sock")
    with ExitStack() as stack:
        with pytest.raises(HostError, match="no answer from a Docker daemon") as caught:
            opened("docker-daemon:team/app:1.2", stack)
        assert "docker save" in caught.value.hint
        server = stack.enter_context(Daemon(tmp_path / "d.sock", archive))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        stack.callback(server.shutdown)

        image = opened("docker-daemon:team/app:1.2", stack)

        assert bytes(image.unpack(stack)["new"].data) == b"new"
        assert image.name == "team/app:1.2"
        with pytest.raises(HostError, match="No such image"):
            opened("docker-daemon:other", stack)
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    with ExitStack() as stack, pytest.raises(UsageError, match="only a daemon on this machine"):
        opened("docker-daemon:x", stack)


@pytest.mark.parametrize("surplus", [0, 1])
def test_a_daemon_may_send_so_much_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surplus: int
) -> None:
    archive = Container().docker_archive(tmp_path / "saved.tar").read_bytes()
    assert IMAGE_BYTES_MAX == 64 << 30
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/d.sock")
    monkeypatch.setattr("nitro_eif.container.docker.IMAGE_BYTES_MAX", len(archive) - surplus)
    with ExitStack() as stack:
        server = stack.enter_context(Daemon(tmp_path / "d.sock", archive))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        stack.callback(server.shutdown)

        if surplus:
            with pytest.raises(HostError, match=f"more than {len(archive) - 1} bytes"):
                opened("docker-daemon:team/app:1.2", stack)
        else:
            assert opened("docker-daemon:team/app:1.2", stack).name == "team/app:1.2"


@pytest.mark.parametrize("form", ["oci_archive", "docker_archive"])
def test_an_image_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    data = getattr(Container(), form)(tmp_path / "image").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    with ExitStack() as stack:
        assert bytes(opened("-", stack).unpack(stack)["new"].data) == b"new"


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("containers-storage:localhost/app", "podman save --format oci-archive -o image.tar localhost/app"),
        ("dir:here", "skopeo copy dir:here oci-archive:image.tar"),
    ],
)
def test_other_places_say_which_command_brings_an_image_here(source: str, command: str) -> None:
    with ExitStack() as stack, pytest.raises(UsageError) as caught:
        opened(source, stack)

    assert command in caught.value.hint


@pytest.mark.parametrize(
    "source", ["work/layuot", "app.tar", "app.tar.gz", "~/app", "./x", "/none", "oci:none"]
)
def test_a_mistyped_path_is_not_looked_up_on_a_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)

    with ExitStack() as stack, pytest.raises(HostError, match="no such file or directory"):
        opened(source, stack)


def test_an_archive_for_another_processor_is_refused(tmp_path: Path) -> None:
    path = Container(architecture="arm64").docker_archive(tmp_path / "saved.tar")

    with ExitStack() as stack, pytest.raises(EifFormatError, match="arm64, not amd64") as caught:
        opened(str(path), stack)
    assert "--arch" in caught.value.hint


def helper(directory: Path, name: str, script: str) -> None:
    program = directory / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize("login", [{"credsStore": "fake"}, {"credHelpers": {"r.example": "fake"}}])
def test_credential_helpers_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: dict[str, object]
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config.json").write_text(json.dumps(login))
    script = '[ "$1 $(cat)" = "get r.example" ] && echo \'{"Username": "ann", "Secret": "s:3"}\''

    helper(tmp_path, "fake", script)
    assert credentials("r.example") == base64.b64encode(b"ann:s:3").decode()
    assert credentials("other.example") is None
    for answer in ("exit 1", "echo nonsense", "echo '[]'", 'echo \'{"Username": "<token>", "Secret": "x"}\''):
        helper(tmp_path, "fake", answer)
        assert credentials("r.example") is None
    auth = base64.b64encode(b"u:p").decode()
    (tmp_path / "config.json").write_text(json.dumps(login | {"auths": {"r.example": {"auth": auth}}}))
    assert credentials("r.example") == auth
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "../fake"}))
    assert credentials("r.example") is None


def test_a_layer_whose_end_is_left_out_is_read() -> None:
    whole = tar_of([(tar_member("f"), b"contents")])
    for data in (whole, whole[:1024], whole[: 512 + 8], whole[:1536]):
        tree = Tree()
        apply_tar(tree, memoryview(data))
        assert bytes(tree["f"].data) == b"contents"


def test_a_layer_that_is_cut_or_broken_is_refused_at_the_right_place() -> None:
    whole = tar_of([(tar_member("f"), b"contents"), (tar_member("g"), b"more")])
    for data, place in (
        (b"", 0),
        (whole[:100], 0),
        (whole[: 512 + 7], 0),
        (whole[: 1024 + 100], 1024),
        (whole[:1024] + b"x" * 512 + whole[1536:], 1024),
        (whole[: 1024 + 512 + 3], 1024),
    ):
        with pytest.raises(EifFormatError) as caught:
            apply_tar(Tree(), memoryview(data))
        assert caught.value.offset == place
