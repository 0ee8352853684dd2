"""The console's way out to a file descriptor."""

import os
import threading
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from nitro_vmm.run.console_writer import ConsoleWriter

# The bounds as they are promised, so that those of the program are held against them.
BUFFER_BYTES_MAX = 256 << 10

PATIENCE_S = 60


def read_all(fd: int) -> bytes:
    pieces = []
    while piece := os.read(fd, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def test_everything_arrives_in_order() -> None:
    pieces = [f"line {index}\n".encode() * 100 for index in range(1000)]
    read_end, write_end = os.pipe()
    arrived: list[bytes] = []
    reader = threading.Thread(target=lambda: arrived.append(read_all(read_end)))
    reader.start()
    writer = ConsoleWriter(write_end)

    for piece in pieces:
        writer.write(piece)
    writer.close()
    os.close(write_end)
    reader.join()
    os.close(read_end)

    assert arrived == [b"".join(pieces)]


def test_a_writer_waits_for_its_reader_until_it_is_abandoned() -> None:
    read_end, write_end = os.pipe()
    writer = ConsoleWriter(write_end)
    done = threading.Event()

    def fill() -> None:
        for _ in range(4):
            writer.write(bytes(BUFFER_BYTES_MAX + 1))
        done.set()

    thread = threading.Thread(target=fill)
    thread.start()
    assert not done.is_set()
    writer.abandon()
    thread.join()

    assert done.is_set()
    writer.close()
    os.close(read_end)  # the writer's thread ends, because nobody reads any more
    writer._thread.join()
    os.close(write_end)


class Watched(threading.Condition):
    """Notes when the thread that writes has to wait."""

    def __init__(self, noted: Queue[str], lock: Any) -> None:  # noqa: ANN401 - of two kinds
        super().__init__(lock)
        self._noted = noted

    def wait(self, timeout: float | None = None) -> bool:
        if threading.current_thread().name == "writes":
            self._noted.put("waits")
        return super().wait(timeout)


def test_a_quarter_of_a_mebibyte_and_what_comes_with_the_last_write_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted: Queue[str] = Queue()
    with Path(os.devnull).open("wb") as sink:
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Condition", lambda lock=None: Watched(noted, lock))
            writer = ConsoleWriter(sink.fileno(), held=True)

        def fill() -> None:
            for piece in (bytes(256 << 10), b"more", b"too much"):
                writer.write(piece)
                noted.put("written")

        thread = threading.Thread(target=fill, name="writes")
        thread.start()
        first = [noted.get(timeout=PATIENCE_S) for _ in range(3)]
        writer.abandon()
        thread.join()
        writer.close()

    assert first == ["written", "written", "waits"]
    assert noted.get() == "written"


def test_a_buffer_that_is_filled_again_and_again_does_not_stall() -> None:
    with Path(os.devnull).open("wb") as sink:
        writer = ConsoleWriter(sink.fileno())
        done = threading.Event()

        def fill() -> None:
            for _ in range(100):
                writer.write(bytes(BUFFER_BYTES_MAX + 1))
            done.set()

        thread = threading.Thread(target=fill, daemon=True)
        thread.start()

        assert done.wait(60)
        thread.join()
        writer.close()


def test_nobody_reads() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    writer = ConsoleWriter(write_end)

    writer.write(b"lost")
    writer.write(b"lost, too")
    writer.close()

    assert not writer._thread.is_alive()
    os.close(write_end)


def test_a_descriptor_that_does_not_block_loses_nothing() -> None:
    text = bytes(range(256)) * 1000
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    arrived: list[bytes] = []
    writer = ConsoleWriter(write_end)
    writer.write(text)
    reader = threading.Thread(target=lambda: arrived.append(read_all(read_end)))
    reader.start()

    writer.close()
    os.close(write_end)
    reader.join()
    os.close(read_end)

    assert arrived == [text]


def test_what_is_held_is_written_when_it_is_released() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    writer = ConsoleWriter(write_end, held=True)

    writer.write(b"early")
    with pytest.raises(BlockingIOError):
        os.read(read_end, 100)
    writer.release()
    writer.write(b" and late")
    writer.close()
    printed = os.read(read_end, 100)
    os.close(read_end)
    os.close(write_end)

    assert printed == b"early and late"


def test_what_is_held_for_ever_is_dropped() -> None:
    read_end, write_end = os.pipe()
    writer = ConsoleWriter(write_end, held=True)

    writer.write(b"never seen")
    writer.close()
    os.close(write_end)
    printed = os.read(read_end, 100)
    os.close(read_end)

    assert printed == b""
