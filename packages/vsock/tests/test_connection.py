"""One connection, packet by packet: what is announced, and what is not announced twice."""

import pytest

from nitro_vsock import SocketType
from nitro_vsock.device.connection import (
    PACKET_OVERHEAD_BYTES,
    PEER_WINDOW_MAX,
    Connection,
    Event,
    State,
    Verdict,
)
from nitro_vsock.device.lane import Lane
from nitro_vsock.device.packet import HEADER, Header, Op, Shutdown

WINDOW = 1000


@pytest.fixture
def connection() -> Connection:
    """One that the guest asked for and the host accepted; the guest knows it."""
    found = Connection(
        (7, 80, 2), guest_cid=16, socket_type=SocketType.STREAM, state=State.CONNECTING, buf_alloc=WINDOW
    )
    found.update_credit(WINDOW, 0)
    found.accept()
    assert sent(found) == [(Op.RESPONSE, 0)]
    return found


def sent(connection: Connection) -> list[tuple[int, int]]:
    """Operation and flags of all control packets that are due."""
    packets = []
    while (header := connection.next_control()) is not None:
        fields = Header(*HEADER.unpack(header))
        packets.append((fields.op, fields.flags))
    return packets


def test_what_was_shut_down_is_announced_once_and_adds_up(connection: Connection) -> None:
    connection.shut_down(Shutdown.SEND)
    connection.shut_down(Shutdown.SEND)
    assert sent(connection) == [(Op.SHUTDOWN, Shutdown.SEND)]

    connection.shut_down(Shutdown.SEND)
    assert sent(connection) == [], "it is no news"

    connection.shut_down(Shutdown.RECEIVE)
    assert sent(connection) == [(Op.SHUTDOWN, Shutdown.BOTH)]
    assert connection.state == State.CLOSING


def test_control_packets_carry_no_data(connection: Connection) -> None:
    connection.receive(Op.CREDIT_REQUEST, 0, WINDOW, 0)
    connection.shut_down(Shutdown.BOTH)

    headers = [connection.next_control(), connection.next_control()]

    fields = [Header(*HEADER.unpack(header)) for header in headers if header is not None]
    assert [(header.op, header.len, header.flags) for header in fields] == [
        (Op.CREDIT_UPDATE, 0, 0),
        (Op.SHUTDOWN, 0, Shutdown.BOTH),
    ]
    assert connection.next_control() is None


def test_a_shutdown_in_two_halves_is_over_after_the_second(connection: Connection) -> None:
    first = connection.receive(Op.SHUTDOWN, Shutdown.RECEIVE, WINDOW, 0)
    second = connection.receive(Op.SHUTDOWN, Shutdown.SEND, WINDOW, 0)

    assert (first, second) == (Verdict.SHUTDOWN, Verdict.FINISHED)
    assert connection.state == State.CLOSED


def numbers(names: type) -> list[int]:
    return [number for name, number in vars(names).items() if not name.startswith("_")]


@pytest.mark.parametrize("names", [State, Event, Verdict, Op])
def test_states_events_and_verdicts_are_told_apart(names: type) -> None:
    assert len(set(numbers(names))) == len(numbers(names)) > 3


def test_events_are_told_apart_from_packets() -> None:
    assert not set(numbers(Op)) & set(numbers(Event))


@pytest.mark.parametrize("op", [Event.LAST_SHUTDOWN, Event.HOST_ACCEPTED, Event.HOST_DONE, Event.ENDED])
def test_a_guest_cannot_send_an_event(connection: Connection, op: int) -> None:
    assert connection.receive(op, 0, WINDOW, 0) == Verdict.VIOLATION


@pytest.mark.parametrize(("taken", "due"), [(WINDOW // 4 - 1, []), (WINDOW // 4, [(Op.CREDIT_UPDATE, 0)])])
def test_credit_goes_back_after_a_quarter_of_the_window(
    connection: Connection, taken: int, due: list[tuple[int, int]]
) -> None:
    assert connection.receive_data(WINDOW, WINDOW, 0)

    connection.forwarded(WINDOW - taken)

    assert sent(connection) == due


def test_any_credit_goes_back_when_all_that_was_held_is_gone(connection: Connection) -> None:
    connection.receive_data(1, WINDOW, 0)

    connection.forwarded(0, drained=True)

    assert sent(connection) == [(Op.CREDIT_UPDATE, 0)]


def test_a_quarter_is_of_the_smaller_of_the_two_windows(connection: Connection) -> None:
    connection.receive_data(100, 400, 0)

    connection.forwarded(0)

    assert sent(connection) == [(Op.CREDIT_UPDATE, 0)]


@pytest.mark.parametrize(("sent_before", "fits"), [(WINDOW - 1, True), (WINDOW, True), (WINDOW + 1, False)])
def test_the_guest_may_have_its_window_on_the_way_and_no_more(
    connection: Connection, sent_before: int, *, fits: bool
) -> None:
    assert connection.receive_data(sent_before, WINDOW, 0) is fits


def test_packets_are_metered_and_one_is_always_allowed(connection: Connection) -> None:
    connection.update_credit(2 * PACKET_OVERHEAD_BYTES, 0)
    assert connection.packet_credit == 2
    connection.sent(10, 1)
    connection.sent(10, 1)
    assert connection.packet_credit == 0

    connection.update_credit(2 * PACKET_OVERHEAD_BYTES, 10)
    assert connection.packet_credit == 1, "the first batch was taken whole"
    connection.update_credit(2 * PACKET_OVERHEAD_BYTES, 19)
    assert connection.packet_credit == 1, "the second was not"

    connection.update_credit(1, 20)
    assert connection.packet_credit == 1, "the least window holds one packet"


def test_no_more_is_on_the_way_than_our_own_limit(connection: Connection) -> None:
    connection.update_credit(0xFFFF_FFFF, 0)

    assert connection.credit == PEER_WINDOW_MAX


@pytest.mark.parametrize(("length", "due"), [(299, []), (300, [(Op.CREDIT_REQUEST, 0)])])
def test_a_guest_is_asked_when_so_much_is_under_way_that_its_sibling_should_hear(
    connection: Connection, length: int, due: list[tuple[int, int]]
) -> None:
    receives = Lane()
    connection.join_sibling(Lane(), receives)
    receives.note_told(0, WINDOW, enough=300)

    connection.sent(length, 1)

    assert sent(connection) == due


@pytest.mark.parametrize("taken", [0, 300], ids=["untaken", "taken"])
def test_a_guest_is_asked_again_only_after_as_much_again(connection: Connection, taken: int) -> None:
    receives = Lane()
    connection.join_sibling(Lane(), receives)
    receives.note_told(0, WINDOW, enough=300)
    connection.sent(300, 1)
    connection.update_credit(WINDOW, taken)
    sent(connection)

    connection.sent(299, 1)
    assert sent(connection) == []
    connection.sent(1, 1)
    assert sent(connection) == [(Op.CREDIT_REQUEST, 0)]


def test_a_single_byte_is_asked_about_where_the_window_is_tiny(connection: Connection) -> None:
    receives = Lane()
    connection.join_sibling(Lane(), receives)
    receives.note_told(0, 1, enough=0)

    connection.sent(1, 1)

    assert sent(connection) == [(Op.CREDIT_REQUEST, 0)]


def test_counters_wrap_on_the_wire_only(connection: Connection) -> None:
    connection.tx_cnt = connection.rx_cnt = connection.fwd_cnt = 0xFFFF_FFF0
    connection.sent(0x20, 1)
    connection.update_credit(WINDOW, 0x0)
    assert connection.in_flight == 0x10

    connection.receive_data(0x20, WINDOW, 0)
    connection.forwarded(0)

    assert Header(*HEADER.unpack(connection.header(Op.RW))).fwd_cnt == 0x10
