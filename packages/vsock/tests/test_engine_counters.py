"""What an engine counts, each thing once: operators read these numbers as they stand."""

import socket
from dataclasses import asdict

import pytest

from engine_bench import PORT, Bench, ops
from nitro_vsock.device.packet import Op, Shutdown

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def counted(bench: Bench) -> dict[str, int]:
    """All counters that are not zero; how often the guest is interrupted depends on batches."""
    counters = asdict(bench.engine.counters())
    del counters["interrupts"]
    return {name: value for name, value in counters.items() if value}


def test_a_conversation_that_the_guest_began(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens(PORT, 99)

    guest.send(Op.RW, 99, PORT, b"hello")
    assert host.recv(10) == b"hello"
    for text in (b"welcome", b"!"):
        host.send(text)
        guest.packets()

    assert counted(bench) == {
        "connections": 1,
        "opened_by_guest": 1,
        "bytes_to_host": 5,
        "packets_to_host": 1,
        "bytes_to_guest": 8,
        "packets_to_guest": 2,
    }


def test_a_conversation_of_messages(bench: Bench) -> None:
    guest = bench.start(seqpacket=True)
    listener = bench.listen(PORT, socket.SOCK_SEQPACKET)
    guest.send(Op.REQUEST, 99, PORT, type=2)
    guest.packets()
    host = bench.accept(listener)

    guest.send(Op.RW, 99, PORT, b"hello", type=2, flags=1)
    assert host.recv(10) == b"hello"
    for text in (b"welcome", b"!"):
        host.send(text)
        guest.packets()

    assert counted(bench) == {
        "connections": 1,
        "opened_by_guest": 1,
        "bytes_to_host": 5,
        "packets_to_host": 1,
        "bytes_to_guest": 8,
        "packets_to_guest": 2,
    }


def test_a_connection_that_the_host_opened_and_the_guest_ends(bench: Bench) -> None:
    guest = bench.start()
    _, host_port = bench.host_opens(52)
    opened = counted(bench)

    guest.send(Op.RST, 52, host_port)
    guest.packets()

    assert opened == {"connections": 1, "opened_by_host": 1}
    assert counted(bench) == {"opened_by_host": 1}


def test_a_program_that_has_not_said_a_port_yet(bench: Bench) -> None:
    bench.start()

    bench.dial()

    assert counted(bench) == {"half_open": 1}


@pytest.mark.parametrize("line", [b"CONNECT\n", b"HELLO 52\n", b"CONNECT 4294967296\n"])
def test_a_program_that_says_something_else_is_refused(bench: Bench, line: bytes) -> None:
    bench.start()

    bench.dial(line)

    assert counted(bench) == {"refused": 1}


def test_a_program_too_many_is_refused(bench: Bench) -> None:
    bench.start(half_open_max=1)

    for _ in range(3):
        bench.dial()

    assert counted(bench) == {"half_open": 1, "refused": 2}


def test_a_guest_that_refuses(bench: Bench) -> None:
    guest = bench.start()
    for _ in range(2):
        bench.dial(b"CONNECT 52\n")
        (request,) = guest.packets()
        guest.send(Op.RST, 52, request.header.src_port)
        guest.packets()

    assert counted(bench) == {"opened_by_host": 2, "refused": 2}


def test_a_guest_that_does_not_answer(bench: Bench) -> None:
    guest = bench.start(connect_timeout_s=2)
    bench.dial(b"CONNECT 52\n")
    guest.packets()

    bench.clock.now += 2
    guest.packets()

    assert counted(bench) == {"opened_by_host": 1, "refused": 1, "resets": 1}


def test_a_port_where_nobody_listens(bench: Bench) -> None:
    guest = bench.start()

    for guest_port in (99, 100):
        guest.send(Op.REQUEST, guest_port, PORT)
        assert ops(guest.packets()) == [Op.RST]

    assert counted(bench) == {"refused": 2, "resets": 2}


def test_more_connections_than_there_may_be(bench: Bench) -> None:
    guest = bench.start(connections_max=1)
    bench.guest_opens(PORT, 99)
    bench.listen(6000)

    guest.send(Op.REQUEST, 100, 6000)
    guest.packets()
    bench.dial(b"CONNECT 52\n")
    guest.packets()

    assert counted(bench) == {"connections": 1, "opened_by_guest": 1, "refused": 2, "resets": 1}


def test_a_connection_to_a_guest_that_is_not_there(bench: Bench) -> None:
    bench.start()
    bench.engine.detach()

    for _ in range(2):
        with bench.engine.connect(52) as host:
            bench.engine.turn()
            assert host.recv(10) == b""

    assert counted(bench) == {"refused": 2}


def test_data_that_is_not_there(bench: Bench) -> None:
    guest = bench.start()
    bench.guest_opens(PORT, 99)

    guest.send(Op.RW, 99, PORT, b"data", len=5)
    guest.packets()

    assert counted(bench) == {"opened_by_guest": 1, "bad_packets": 1, "resets": 1}


@pytest.mark.parametrize(("length", "violations"), [(4096, 0), (4097, 1)])
def test_data_after_the_end_is_no_violation_of_credit_where_there_was_some(
    bench: Bench, length: int, violations: int
) -> None:
    guest = bench.start(tx_buffer_size=4096)
    bench.guest_opens(PORT, 99)
    guest.send(Op.SHUTDOWN, 99, PORT, flags=Shutdown.SEND)

    guest.send(Op.RW, 99, PORT, bytes(length))
    guest.packets()

    counters = bench.engine.counters()
    assert (counters.credit_violations, counters.resets) == (violations, 1)
