"""The console's way out, and the panic that is read off it."""

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.console import BUFFER_BYTES_MAX, LINE_BYTES_MAX, ConsoleWriter, PanicWatch

PANIC = (
    b"[    0.600041] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r\n"
    b"[    0.600628] CPU: 0 UID: 0 PID: 1 Comm: init Not tainted\r\n"
    b"[    0.607753] Rebooting in 1 seconds..\r\n"
)
REASON = "Attempted to kill init! exitcode=0x0000000b"


@pytest.mark.parametrize(
    "last",
    [
        b"[    1.0] Rebooting in 1 seconds..\r\n",
        b"[    1.0] ---[ end Kernel panic - not syncing: why ]---\r\n",
    ],
)
def test_a_panic_is_over(last: bytes) -> None:
    watch = PanicWatch()

    assert not watch.feed(b"[    0.9] Kernel panic - not syncing: why\r\n")
    assert watch.reason == "why"
    assert not watch.feed(b"[    0.9] Call Trace:\r\n")
    assert watch.feed(last)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"Rebooting in 1 seconds..\n",
        b"my log: Kernel panic - not syncing: no\nRebooting in 1 seconds..\n",
        b"Kernel panic - not syncing: no end of the line",
    ],
)
def test_no_panic(text: bytes) -> None:
    watch = PanicWatch()

    assert not watch.feed(text)
    assert watch.reason is None


@given(cuts=st.lists(st.integers(0, len(PANIC))))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    watch = PanicWatch()
    ends = [*sorted(cuts), len(PANIC)]

    over = [watch.feed(PANIC[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    assert over.count(True) == 1
    assert watch.reason == REASON


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes(first: bytes, second: bytes) -> None:
    whole, bytewise = PanicWatch(), PanicWatch()
    data = first + b"Kernel panic - not syncing: " + second

    over = whole.feed(data)
    over_by_byte = [bytewise.feed(bytes([byte])) for byte in data]

    assert over == any(over_by_byte)
    assert whole.reason == bytewise.reason


def test_a_line_without_end_takes_no_memory_and_hides_nothing() -> None:
    watch = PanicWatch()
    for _ in range(100):
        assert not watch.feed(b"x" * LINE_BYTES_MAX)

    assert watch.feed(b"\n" + PANIC)
    assert watch.reason == REASON


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
