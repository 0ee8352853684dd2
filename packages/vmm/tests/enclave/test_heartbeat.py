"""The parent's part of the heartbeat."""

import pytest
import trio
import trio.testing

from nitro_vmm.defaults import HEARTBEAT
from nitro_vmm.enclave.heartbeat import Heartbeat


class Parent:
    """A heartbeat's server, what it says, and the enclave's end of a connection to it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.heartbeat = Heartbeat(self.said.append, lambda: 1.5)
        self.enclave, self.stream = trio.testing.memory_stream_pair()


async def test_the_byte_comes_back_and_counts_as_booted() -> None:
    parent = Parent()
    await parent.enclave.send_all(HEARTBEAT)

    await parent.heartbeat.answer(parent.stream)

    assert await parent.enclave.receive_some() == HEARTBEAT
    assert parent.heartbeat.came.is_set()
    assert parent.heartbeat.at_s == 1.5
    assert parent.said == ["heartbeat after 1.50 s"]


async def test_what_follows_the_byte_does_not_matter() -> None:
    parent = Parent()
    await parent.enclave.send_all(HEARTBEAT + b"and more")

    await parent.heartbeat.answer(parent.stream)

    assert await parent.enclave.receive_some() == HEARTBEAT
    assert parent.heartbeat.came.is_set()


@pytest.mark.parametrize(("sent", "said"), [(b"\x01", "01"), (b"", "empty")])
async def test_a_wrong_byte_gets_no_answer(sent: bytes, said: str) -> None:
    parent = Parent()
    if sent:
        await parent.enclave.send_all(sent)
    await parent.enclave.send_eof()

    await parent.heartbeat.answer(parent.stream)

    assert await parent.enclave.receive_some() == b""
    assert not parent.heartbeat.came.is_set()
    assert parent.said == [f"the enclave's heartbeat was {said}, not b7"]


async def test_an_enclave_that_goes_before_the_answer() -> None:
    parent = Parent()
    await parent.enclave.send_all(HEARTBEAT)
    await parent.enclave.aclose()

    await parent.heartbeat.answer(parent.stream)

    assert not parent.heartbeat.came.is_set()
    assert parent.said == ["the enclave broke off its heartbeat"]


def test_only_the_first_heartbeat_counts() -> None:
    said: list[str] = []
    times = iter([1.0, 2.0])
    heartbeat = Heartbeat(said.append, lambda: next(times))

    heartbeat.note()
    heartbeat.note()

    assert heartbeat.at_s == 1.0
    assert said == ["heartbeat after 1.00 s"]


async def test_wrong_heartbeats_are_reported_a_few_times_only() -> None:
    said: list[str] = []
    heartbeat = Heartbeat(said.append, lambda: 1.5)

    for _ in range(1000):
        enclave, parent = trio.testing.memory_stream_pair()
        await enclave.send_eof()
        await heartbeat.answer(parent)

    assert len(said) == 3
    assert said[-1].endswith("; more of these are not reported")
