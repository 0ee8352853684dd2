"""Images of a Docker daemon on this machine, by its socket (Docker Engine API 1.24, "Export an image")."""

import http.client
import json
import os
import socket
import urllib.parse
from typing import IO, Final

from nitro_eif.errors import HostError, UsageError
from nitro_eif.files import CHUNK_BYTES

DEFAULT_HOST: Final = "unix:///var/run/docker.sock"
TIMEOUT_S: Final = 300.0
"""How long the daemon may be silent: it packs an image before it sends the first byte."""
IMAGE_BYTES_MAX: Final = 64 << 30


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def save_from_daemon(name: str, file: IO[bytes]) -> None:
    """Let the daemon write an image into a file, as ``docker save`` does.

    Raises:
        UsageError: ``DOCKER_HOST`` does not name a socket on this machine.
        HostError: There is no daemon, it does not have the image, or it fails.
    """
    host = os.environ.get("DOCKER_HOST") or DEFAULT_HOST
    kind, _, path = host.partition("://")
    if kind != "unix":
        raise UsageError(
            f"DOCKER_HOST is {host}, and only a daemon on this machine is asked",
            hint=f"docker save {name} -o image.tar, and give docker-archive:image.tar",
        )
    connection = _Connection(path)
    try:
        connection.request("GET", f"/images/{urllib.parse.quote(name, safe='')}/get")
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise HostError(f"the Docker daemon: {_reason(response)}", hint=f"docker pull {name}")
        total = 0
        while data := response.read(CHUNK_BYTES):
            total += len(data)
            if total > IMAGE_BYTES_MAX:
                raise HostError(f"the Docker daemon sends more than {IMAGE_BYTES_MAX} bytes")
            file.write(data)
    except (OSError, http.client.HTTPException) as error:
        raise HostError(
            f"{path}: no answer from a Docker daemon: {error}",
            hint="save the image to a file where it is, with docker save or podman save, and give that file",
        ) from error
    finally:
        connection.close()


def _reason(response: http.client.HTTPResponse) -> str:
    try:
        answer = json.loads(response.read(CHUNK_BYTES))
    except ValueError:
        answer = None
    message = answer.get("message") if isinstance(answer, dict) else None
    return message if isinstance(message, str) else f"{response.status} {response.reason}"
