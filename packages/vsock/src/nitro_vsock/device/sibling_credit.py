"""How a guest that sends to another guest hears what that one has read, also where nobody says so unasked.

A Linux guest tells what its program has read when little of its own buffer is left, and newer ones also when
all is read. The sender may be allowed less than that: its own buffer bounds what Linux sends, and so does
ours. So while a sender has used up most of its credit, its sibling is asked for news, soon at first and then
more and more seldom.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from nitro_vsock.device.connection import State
from nitro_vsock.device.connection_table import ConnectionTable
from nitro_vsock.device.lane import Bell, Lane
from nitro_vsock.device.packet import Op
from nitro_vsock.device.socket_connection import SocketConnection
from nitro_vsock.device.timers import Timers

ASK_FIRST_S: Final = 0.001
ASK_LAST_S: Final = 0.2
"""How long to wait before a sibling is asked: at first, and after it had nothing to tell for long."""


class SiblingCredit:
    """The credit of one guest's connections with other guests.

    Args:
        table: The guest's connections.
        timers: What wakes those that ask again.
        post: Has something called by this guest's engine, from any thread.
    """

    def __init__(
        self, table: ConnectionTable, timers: Timers, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self._table = table
        self._timers = timers
        self._post = post

    def join(self, connection: SocketConnection, sends: Lane, receives: Lane) -> None:
        """Have the connection's credit come from a sibling, and the sibling's from this guest.

        Args:
            connection: The connection.
            sends: The lane in which this guest sends.
            receives: The lane in which it receives.
        """
        connection.records = not connection.stream
        connection.join_sibling(sends, receives)
        sends.tell_sender = Bell(self._post, partial(self._sibling_reported, connection))
        receives.ask_receiver = Bell(self._post, partial(self._ask_guest, connection))

    def look_at(self, connection: SocketConnection, lane: Lane) -> None:
        """The guest has sent something: see whether it has to wait for its sibling from now on."""
        if lane.deadline is None and connection.short_of_credit:
            lane.seen = lane.told
            lane.delay_s = ASK_FIRST_S
            self._ask_later(connection, lane)

    def guest_asks(self, lane: Lane) -> None:
        """The guest asks for news of its credit; it has its answer, and the sibling may know better."""
        lane.eager = True
        if lane.ask_receiver is not None:
            lane.ask_receiver.ring()

    def _ask_later(self, connection: SocketConnection, lane: Lane) -> None:
        self._timers.schedule(lane, lane.delay_s, partial(self._ask, connection, lane))

    def _ask(self, connection: SocketConnection, lane: Lane) -> None:
        if connection.sends is not lane:
            return  # the way has ended
        if not connection.short_of_credit:
            lane.eager = False
            return
        lane.eager = True
        if lane.taken != lane.seen:
            lane.seen = lane.taken
            lane.delay_s = ASK_FIRST_S
            self._tell(connection)
        elif lane.ask_receiver is not None:
            lane.delay_s = min(2 * lane.delay_s, ASK_LAST_S)
            lane.ask_receiver.ring()
        self._ask_later(connection, lane)

    def _sibling_reported(self, connection: SocketConnection) -> None:
        """The sibling has news that this guest should hear."""
        lane = connection.sends
        # Before the connection is established, the guest does not expect any such packet, and the one that
        # tells it of the connection brings the same news.
        if lane is None or connection.state != State.ESTABLISHED:
            return
        self._tell(connection)
        if connection.short_of_credit:
            self.look_at(connection, lane)
        else:
            lane.eager = False

    def _tell(self, connection: SocketConnection) -> None:
        connection.follow_sibling()
        if connection.pending:
            self._table.queue(connection)

    def _ask_guest(self, connection: SocketConnection) -> None:
        """Ask this guest how much it has read of what its sibling has sent."""
        if connection.state == State.ESTABLISHED and connection.in_flight:
            connection.pending |= 1 << Op.CREDIT_REQUEST
            self._table.queue(connection)
