"""Everything about the connections of one guest, put together, and what happens to their sockets."""

import select
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nitro_vsock.device.connection import State
from nitro_vsock.device.connection_table import ConnectionTable
from nitro_vsock.device.counters import Counters
from nitro_vsock.device.credit_wait import CreditWait
from nitro_vsock.device.delivery import Delivery
from nitro_vsock.device.dialing import Dialer, Service
from nitro_vsock.device.endings import Endings
from nitro_vsock.device.front_door import FrontDoor
from nitro_vsock.device.packet import Shutdown
from nitro_vsock.device.router import Sibling
from nitro_vsock.device.sibling_credit import SiblingCredit
from nitro_vsock.device.socket_connection import Doubt, SocketConnection
from nitro_vsock.device.timers import Timers
from nitro_vsock.host.sides import HostSide

if TYPE_CHECKING:
    from nitro_vsock.plain_config import VsockSettings


class Connections:
    """The connections of one guest, and the parts that work on them.

    Args:
        config: The guest's address, and limits.
        epoll: Where sockets are registered.
        clock: Seconds, monotonic.
        host_side: What guest connections to the host are joined with; `None`: with services only.
        services: Handlers of the ports that the host side does not care for.
        find_sibling: Finds another guest by its CID.
        post: Has something called by the engine's next turn, from any thread.
    """

    def __init__(
        self,
        config: "VsockSettings",
        epoll: select.epoll,
        clock: Callable[[], float],
        *,
        host_side: HostSide | None,
        services: Mapping[int, Service],
        find_sibling: Callable[[int], Sibling | None],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self.counters = Counters()
        self.timers = Timers(clock)
        self.table = ConnectionTable(config, epoll, self.counters)
        self.credit_wait = CreditWait(self.table, self.timers)
        self.endings = Endings(config, self.table, self.timers)
        self.sibling_credit = SiblingCredit(self.table, self.timers, post)
        self.delivery = Delivery(config, self.table, self.endings, self.sibling_credit, self.counters)
        self.dialer = Dialer(
            config,
            self.table,
            self.endings,
            self.timers,
            self.counters,
            sibling_credit=self.sibling_credit,
            host_side=host_side,
            services=services,
            find_sibling=find_sibling,
            post=post,
        )
        self.door = FrontDoor(
            config,
            epoll,
            table=self.table,
            dialer=self.dialer,
            timers=self.timers,
            counters=self.counters,
        )

    def on_events(self, events: list[tuple[int, int]]) -> bool:
        """Do what epoll's ``events`` ask for; true if another look should follow at once.

        Descriptors that are none of ours are ignored.
        """
        accepting: list[int] = []
        by_fd, door = self.table.by_fd, self.door
        for fd, event in events:
            connection = by_fd.get(fd)
            if connection is not None:
                self._on_socket(connection, event)
            elif fd in door.handshakes:
                door.on_event(fd)
            elif fd in door.listeners:
                accepting.append(fd)
        # Accepting comes last, because a new socket may get the number of one that was closed just now, and
        # would then get that one's events.
        door.crowded, door.accepted = door.accepted, False
        for fd in accepting:
            door.accept(fd)
        return door.accepted

    def _on_socket(self, connection: SocketConnection, events: int) -> None:
        """Take note of what happened to a connection's socket. Reading from it is for its turn."""
        if connection.state == State.CONNECTING and connection.socket is not None:
            self.dialer.host_connected(connection)
            return
        if events & (select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            connection.readable = True
            if events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
                connection.ending = True
            if events & (select.EPOLLHUP | select.EPOLLERR):
                connection.hangup = True
                if connection.lingering:
                    self.endings.end_lingering(connection)  # nobody is left to read what is held
                    return
                if connection.guest_shutdown & Shutdown.RECEIVE:
                    self.endings.host_closed(connection)  # nor would the guest take what is left to read
                    return
            if not connection.queued and connection.state == State.ESTABLISHED:
                self.table.queue(connection)
        if events & select.EPOLLOUT:
            if connection.holding:
                self.delivery.flush(connection)
            elif connection.doubt == Doubt.NEW:
                connection.doubt = Doubt.NONE
            elif not events & select.EPOLLIN:
                self.table.doubt(connection)

    def still_meant(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of ``events`` that still mean what they meant when they were seen.

        To be asked when connections were forgotten since then. A socket may be gone, and a new one may have
        its number. So what was seen of sockets is dropped, and epoll is asked to tell it again.
        """
        for fd, _ in events:
            connection = self.table.by_fd.get(fd)
            if connection is not None:
                self.table.look_again(connection)
            else:
                self.door.look_again(fd)
        return [(fd, event) for fd, event in events if fd in self.door.listeners]

    def forget_all(self) -> None:
        """The guest has forgotten every connection, and so do we. What it sent is still delivered."""
        self.delivery.pass_on_all()
        self.endings.forget_all()

    def close(self) -> None:
        """Close every socket, and remove the files of those that listen."""
        self.door.close()
        self.endings.close_all()
