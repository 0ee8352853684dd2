"""What a client takes of an answer, of a process that may have gone mad."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nitro_vmm.errors import HostError
from nitro_vmm.run.control import stats
from nitro_vmm.run.registry import control_address

Answering = Callable[[bytes], Path]


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Answering]:
    """Gives the directory of a process that answers its one client with these bytes."""
    threads = []

    def start(answer: bytes) -> Path:
        listener = socket.socket(socket.AF_UNIX)
        with control_address(tmp_path) as address:
            listener.bind(address)
        listener.listen()

        def serve() -> None:
            with listener, listener.accept()[0] as client, client.makefile("rb") as request:
                request.readline()
                client.sendall(answer)

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        return tmp_path

    yield start
    for thread in threads:
        thread.join()


def padded(length: int) -> bytes:
    """A line of so many bytes with its end."""
    empty = json.dumps({"Name": ""}).encode() + b"\n"
    return json.dumps({"Name": "x" * (length - len(empty))}).encode() + b"\n"


def test_the_longest_answer_is_64_kib(answering: Answering) -> None:
    found = stats(answering(padded(65536)))

    assert found["Name"].startswith("xxx")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(padded(65538), id="too long"),
        pytest.param(padded(100)[:50], id="broken off"),
        pytest.param(b"", id="none"),
        pytest.param(b"\xff\n", id="no text"),
    ],
)
def test_what_is_no_answer_is_an_error(answering: Answering, answer: bytes) -> None:
    directory = answering(answer)

    with pytest.raises(HostError, match=rf"the process of {directory.name} does not answer"):
        stats(directory)
