"""How connections end: what the guest's and the host program's endings mean for each other.

Each side may end its sending and its receiving apart. A guest says so with SHUTDOWN, a host program with
shutdown(2) or close(2). A connection is over for the guest when it has sent or got an RST. It may then linger
for the host program, which gets everything that the guest sent before.
"""

import errno
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from nitro_vsock.device.connection import State
from nitro_vsock.device.connection_table import ConnectionTable
from nitro_vsock.device.packet import Shutdown
from nitro_vsock.device.socket_connection import SocketConnection
from nitro_vsock.device.timers import Timers

if TYPE_CHECKING:
    from nitro_vsock.plain_config import VsockSettings


class Endings:
    """Ends the connections of one guest.

    Args:
        config: How long the guest may take to agree to an end, and the host program to read the rest.
        table: The guest's connections.
        timers: What wakes those that wait too long.
    """

    def __init__(self, config: "VsockSettings", table: ConnectionTable, timers: Timers) -> None:
        self._table = table
        self._timers = timers
        self._close_timeout_s = config.close_timeout_s
        self._linger_timeout_s = config.linger_timeout_s

    # What the guest has ended

    def follow_guest_shutdown(self, connection: SocketConnection) -> None:
        """Let the host program see that the guest will not send, or not receive, any more."""
        if connection.socket is None or connection.state != State.ESTABLISHED:
            return
        # What is held comes before the end of the stream, so the end has to wait for it.
        ended = connection.guest_shutdown & Shutdown.SEND and not connection.holding
        if ended and not connection.write_closed:
            connection.close_write()
        if connection.guest_shutdown & Shutdown.RECEIVE:
            if connection.records and not connection.write_closed:
                connection.send_no_more()
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RD)
            if connection.hangup:
                self.host_closed(connection)

    # What the host program has ended

    def host_eof(self, connection: SocketConnection) -> None:
        """The host program sends no more. If it has closed its socket, it does not read either."""
        connection.readable = False
        if connection.hangup:
            self.host_closed(connection)
        else:
            connection.shut_down(Shutdown.SEND)
            self._after_shut_down(connection)

    def host_closed(self, connection: SocketConnection) -> None:
        """The host program neither sends nor reads any more."""
        connection.shut_down(Shutdown.BOTH)
        self._after_shut_down(connection)

    def sibling_receives_no_more(self, connection: SocketConnection) -> None:
        """The guest at the other end takes no more messages; it may still send some."""
        connection.takes_no_more()
        if connection.state == State.ESTABLISHED:
            connection.shut_down(Shutdown.RECEIVE)
            self._after_shut_down(connection)

    def host_refuses(self, connection: SocketConnection, error: OSError) -> None:
        """The host program takes no more of what the guest sends; it may still send."""
        if connection.lingering or connection.state == State.CLOSED:
            return
        if error.errno == errno.EMSGSIZE:
            # The message fits no socket of the host's. Going on would lose it silently.
            self.finish(connection, reset=True)
        elif connection.state == State.ESTABLISHED:
            connection.shut_down(Shutdown.RECEIVE)
            self._after_shut_down(connection)

    def _after_shut_down(self, connection: SocketConnection) -> None:
        self._table.queue(connection)
        if connection.state == State.CLOSING:
            # Nothing is left to do but to hear the guest's RST, for which the socket is not needed.
            self._table.close_socket(connection)
            connection.forwarded(0)
            self._timers.schedule(
                connection, self._close_timeout_s, partial(self.finish, connection, reset=True)
            )

    # The end

    def finish(self, connection: SocketConnection, *, reset: bool) -> None:
        """End the connection for the guest. What the guest sent may still be on its way to the host program.

        Args:
            connection: The connection.
            reset: Whether the guest has to be told with an RST.
        """
        self._table.forget(connection)
        connection.end()
        connection.deadline = None
        if reset:
            self._table.reset(connection)
        if connection.on_result is not None:
            connection.on_result(False)
            connection.on_result = None
        connection.segments.clear()
        if connection.holding and connection.socket is not None and not connection.hangup:
            connection.lingering = True
            self._table.lingering.add(connection)
            self._timers.schedule(connection, self._linger_timeout_s, partial(self.end_lingering, connection))
        else:
            self._table.close_socket(connection)

    def end_lingering(self, connection: SocketConnection) -> None:
        """End the connection for the host program as well."""
        connection.lingering = False
        connection.deadline = None
        self._table.lingering.discard(connection)
        self._table.close_socket(connection)

    def forget_all(self) -> None:
        """The guest has forgotten every connection, and so do we. What it sent is still delivered.

        What this batch brought has to be passed on before.
        """
        for connection in list(self._table.by_address.values()):
            self.finish(connection, reset=False)
        self._table.ready.clear()
        self._table.resets.clear()
        self._table.doubtful.clear()

    def close_all(self) -> None:
        """Close every socket at once, and drop what is held."""
        table = self._table
        for connection in [*table.by_address.values(), *table.lingering]:
            connection.end()
            self.end_lingering(connection)
        table.by_address.clear()
