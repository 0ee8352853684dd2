"""vsock served by the processor's thread: at kicks, and while the processor waits in HLT."""

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nitro_vmm.devices.vsock import SLACK_NS, VsockDevice
from nitro_vsock import VsockConfig, VsockEngine
from nitro_vsock.testing import guest_ram
from vsock_guest import CID, RAM_BYTES, REQUEST, RESPONSE, RW, Guest

PORT = 5000
PATIENCE_S = 60


class Bench:
    """A guest with a connection to the host, whose processor's thread has waited in HLT before."""

    def __init__(self) -> None:
        memory = guest_ram(RAM_BYTES)
        accepted: list[socket.socket] = []
        engine = VsockEngine(VsockConfig(guest_cid=CID), services={PORT: accepted.append})
        self.now_ns = 1_000_000_000
        self.device = VsockDevice(
            engine, memory, locked=lambda action: action(), clock_ns=lambda: self.now_ns
        )
        self.guest = Guest(self.device, memory)
        self.guest.start()
        self.guest.send(REQUEST, PORT)
        while self.device.turn() == 0:
            pass
        assert [packet.op for packet in self.guest.received()] == [RESPONSE]
        self.guest.acknowledge()
        self.device.turn()
        self.host = accepted[0]
        self.host.settimeout(PATIENCE_S)

    def main_loop_wakes(self, timeout_s: float = 0) -> bool:
        return bool(select.select([self.device.fileno()], [], [], timeout_s)[0])


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.device.close()
    bench.host.close()


def test_what_comes_while_the_processor_waits_is_left_to_its_thread(bench: Bench) -> None:
    bench.device.claim(mine=True)

    bench.host.send(b"hello")

    assert not bench.main_loop_wakes()
    assert select.select([bench.device.work_fileno()], [], [], PATIENCE_S)[0]
    bench.device.assist()
    assert [packet.payload for packet in bench.guest.received()] == [b"hello"]
    assert bench.guest.levels[-1]


def test_a_kick_is_served_before_the_guest_goes_on(bench: Bench) -> None:
    bench.device.claim(mine=True)
    bench.device.claim(mine=False)

    bench.guest.send(RW, PORT, b"question")

    bench.host.setblocking(False)
    assert bench.host.recv(100) == b"question"


def test_packets_without_a_kick_are_found_when_the_processor_waits_again(bench: Bench) -> None:
    bench.device.claim(mine=True)
    bench.device.claim(mine=False)
    bench.guest.send(RW, PORT, b"one ")
    bench.device.pause()  # so that the second kick is not heard
    bench.device.resume()
    bench.guest.transport._active = False
    bench.guest.send(RW, PORT, b"two")
    bench.guest.transport._active = True

    bench.device.claim(mine=True)

    assert bench.host.recv(100) == b"one two"


def test_the_main_loop_takes_over_from_a_guest_that_runs_on(bench: Bench) -> None:
    bench.device.claim(mine=True)
    bench.device.claim(mine=False)
    bench.host.send(b"hello")

    assert bench.main_loop_wakes(PATIENCE_S)
    bench.device.turn()

    (packet,) = bench.guest.receive.used()
    assert packet.endswith(b"hello")
    bench.host.send(b"more")
    assert bench.main_loop_wakes(), "without any delay now"


def test_the_main_loop_leaves_a_guest_alone_that_waits_again(bench: Bench) -> None:
    bench.device.claim(mine=True)
    bench.device.claim(mine=False)
    bench.device.claim(mine=True)  # soon after, so that the timer runs on
    assert bench.main_loop_wakes(PATIENCE_S)

    bench.device.turn()

    bench.host.send(b"hello")
    assert not bench.main_loop_wakes()


def test_the_main_loop_sleeps_on_beside_a_guest_that_waits_for_long(bench: Bench) -> None:
    bench.device.claim(mine=True)
    bench.now_ns += 10_000_000
    bench.device.claim(mine=False)

    bench.device.claim(mine=True)

    timer = Path(f"/proc/self/fdinfo/{bench.device._timer.fileno()}").read_text()
    assert "it_value: (0, 0)" in timer, "it will not fire"
    assert "ticks: 0" in timer, "nor has it fired"


def test_a_timer_that_would_fire_too_early_is_set_anew(bench: Bench) -> None:
    bench.device.claim(mine=True)
    bench.device.claim(mine=False)
    assert bench.main_loop_wakes(PATIENCE_S)
    bench.device.claim(mine=True)
    bench.device.turn()
    bench.now_ns += SLACK_NS + 1

    bench.device.claim(mine=False)

    assert bench.main_loop_wakes(PATIENCE_S)


def test_a_kick_ends_that(bench: Bench) -> None:
    bench.device.claim(mine=True)
    bench.device.claim(mine=False)
    assert bench.main_loop_wakes(PATIENCE_S)
    bench.device.turn()
    bench.guest.send(RW, PORT, b"question")
    bench.device.claim(mine=True)

    bench.host.send(b"answer")

    assert not bench.main_loop_wakes()


def test_the_main_loop_hears_of_a_deadline(bench: Bench) -> None:
    ours, theirs = socket.socketpair()
    bench.device.claim(mine=True)
    bench.device._engine.adopt(theirs, 52)

    bench.device.assist()

    assert bench.main_loop_wakes()
    delay_s = bench.device.turn()
    assert delay_s is not None
    assert not bench.main_loop_wakes(), "once is enough"
    ours.close()


def test_the_interrupt_for_what_was_sent_is_released(bench: Bench) -> None:
    bench.device.claim(mine=True)
    bench.device.claim(mine=False)
    bench.guest.transmit.used()
    bench.guest.transmit.want_interrupts()
    before = len(bench.guest.levels)
    bench.guest.send(RW, PORT, b"question")

    assert bench.device.holds
    assert len(bench.guest.levels) == before
    bench.device.release()

    assert bench.guest.levels[before:] == [True]


def test_a_broken_ring_is_noticed_at_a_kick(bench: Bench) -> None:
    bench.device.claim(mine=True)
    bench.device.claim(mine=False)
    bench.guest.transmit.set_available_index(1000)

    bench.guest.put(0x50, 1)

    assert bench.guest.get(0x70) & 64, "DEVICE_NEEDS_RESET"
    bench.device.claim(mine=True)


def test_a_machine_that_is_paused_in_hlt_leaves_the_device_to_the_main_loop(bench: Bench) -> None:
    bench.device.claim(mine=True)
    bench.device.claim(mine=False)
    bench.device.pause()
    bench.host.send(b"waits")

    assert bench.main_loop_wakes(PATIENCE_S)
    bench.device.turn()

    assert not bench.guest.received()
    bench.device.resume()
    while bench.device.turn() == 0:
        pass
    assert [packet.payload for packet in bench.guest.received()] == [b"waits"]


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_no_descriptor_is_left() -> None:
    before = open_descriptors()

    bench = Bench()
    bench.device.close()
    bench.host.close()

    assert open_descriptors() == before
