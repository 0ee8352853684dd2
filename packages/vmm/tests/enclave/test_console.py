"""What a guest has printed, for readers who come early, late or never."""

import pytest
import trio
import trio.testing

from nitro_vmm.enclave.console import Console

# The bounds as they are promised, so that those of the program are held against them.
KEPT_BYTES_MAX = 1 << 20


class Sink:
    """Notes what it gets."""

    def __init__(self) -> None:
        self.got = b""
        self.abandoned = False

    def write(self, data: bytes) -> None:
        self.got += data

    def abandon(self) -> None:
        self.abandoned = True


async def test_a_reader_who_comes_late_reads_from_the_first_byte_on() -> None:
    console = Console()
    console.write(b"one ")
    console.write(b"two")
    console.close()

    stream = console.stream()

    assert b"".join([piece async for piece in stream]) == b"one two"
    assert stream.lost == 0


async def test_readers_do_not_take_from_each_other() -> None:
    console = Console()
    first, second = console.stream(), console.stream()

    console.write(b"a")
    assert await first.receive() == b"a"
    console.write(b"b")

    assert await first.receive() == b"b"
    assert await second.receive() == b"ab"


async def test_a_reader_who_is_too_slow_is_told_how_much_is_lost() -> None:
    console = Console()
    stream = console.stream()
    console.write(b"early")
    assert await stream.receive() == b"early"

    console.write(b"x" * 7)
    console.write(b"y" * KEPT_BYTES_MAX)
    received = await stream.receive()

    assert (stream.lost, received) == (7, b"y" * KEPT_BYTES_MAX)


@pytest.mark.parametrize("extra", [0, 1])
async def test_as_much_is_kept_as_is_promised(extra: int) -> None:
    console = Console()
    console.write(bytes(KEPT_BYTES_MAX + extra))

    stream = console.stream()

    assert len(await stream.receive()) == KEPT_BYTES_MAX
    assert stream.lost == extra


async def test_who_waits_is_woken_by_output_and_by_the_end() -> None:
    console = Console()
    received: list[bytes] = []

    async def read() -> None:
        received.extend([piece async for piece in console.stream()])

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            console.write(b"hi")
            await trio.testing.wait_all_tasks_blocked()
            console.close()

    assert received == [b"hi"]


async def test_one_who_gives_up_waiting_is_not_woken() -> None:
    console = Console()
    stream = console.stream()

    with trio.move_on_after(0):
        await console.wait(0)
    console.write(b"hi")

    assert await stream.receive() == b"hi"


def test_a_sink_gets_everything_until_it_is_left() -> None:
    sink = Sink()
    console = Console(sink)

    console.write(b"seen")
    console.leave_sink()
    console.write(b"not seen")

    assert (sink.got, sink.abandoned) == (b"seen", True)


def test_a_sink_that_is_abandoned_still_gets_what_it_takes_at_once() -> None:
    sink = Sink()
    console = Console(sink)

    console.abandon()
    console.write(b"seen")

    assert (sink.got, sink.abandoned) == (b"seen", True)
