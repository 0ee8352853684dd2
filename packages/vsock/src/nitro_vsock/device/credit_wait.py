"""How a connection waits for the guest's credit: the host program has sent data, and the guest has no room.

The guest is asked once, because it reports by itself when it has taken something. There is one exception: a
guest that has room for bytes, but holds many small packets, may not tell when it has read some (see
`connection`). Such a guest is asked from time to time.
"""

from functools import partial
from typing import Final

from nitro_vsock.device.connection import State
from nitro_vsock.device.connection_table import ConnectionTable
from nitro_vsock.device.packet import Op
from nitro_vsock.device.socket_connection import SocketConnection
from nitro_vsock.device.timers import Timers

STALL_PROBE_S: Final = 0.2
"""How often a guest that holds many small packets is asked whether it has read some."""


class CreditWait:
    """The stalled connections of one guest.

    Args:
        table: The guest's connections.
        timers: What wakes those that ask again.
    """

    def __init__(self, table: ConnectionTable, timers: Timers) -> None:
        self._table = table
        self._timers = timers

    def stall(self, connection: SocketConnection) -> None:
        """Stop reading from the host program, and ask the guest for credit."""
        connection.stalled = True
        connection.pending |= 1 << Op.CREDIT_REQUEST
        if connection.credit:  # so it is packets that are too many
            self._probe_later(connection)

    def unstall(self, connection: SocketConnection) -> None:
        """There is news of the guest's credit: go on reading if it is enough."""
        if connection.state != State.ESTABLISHED or not connection.credit:
            return
        if connection.packet_credit:
            connection.stalled = False
            connection.deadline = None
            self._table.queue(connection)
        elif connection.deadline is None:
            self._probe_later(connection)

    def _probe_later(self, connection: SocketConnection) -> None:
        self._timers.schedule(connection, STALL_PROBE_S, partial(self._probe, connection))

    def _probe(self, connection: SocketConnection) -> None:
        connection.pending |= 1 << Op.CREDIT_REQUEST
        self._table.queue(connection)
        self._probe_later(connection)
