"""One guest of the daemon: its engine, its front-ends, and the ways to it."""

import contextlib
import gc
import os
import socket
from dataclasses import asdict, dataclass

import trio

from nitro_vsock.daemon import session, stats
from nitro_vsock.daemon.config import VmConfig
from nitro_vsock.daemon.engine_device import EngineDevice
from nitro_vsock.daemon.heartbeat import HEARTBEAT_PORT, Heartbeat
from nitro_vsock.daemon.logs import LOGGER
from nitro_vsock.device.engine import VsockEngine
from nitro_vsock.device.router import VsockRouter
from nitro_vsock.errors import HostError, UsageError, VsockError
from nitro_vsock.host import af_vsock
from nitro_vsock.host.endpoints import Published
from nitro_vsock.host.listening import accept
from nitro_vsock.host.proxy import ProxyHostSide
from nitro_vsock.host.publish import Publisher
from nitro_vsock.host.sides import HostSide, RefusingHostSide
from nitro_vsock.host.unix import UnixHostSide, UnixListener, allowed_users, may_connect
from nitro_vsock.vhost_user.backend import Backend

DEFAULT_SPIN_US = 30
"""Longer than most answers take, shorter than going to sleep and waking up (`nox -s 'bench(vsock)'`)."""


def default_spin_us(*, alone: bool) -> int:
    """How long to look for work before sleep if nobody chose: some time where a processor is to spare.

    Args:
        alone: Whether this is the only guest of the process. Several threads that look for work would keep
            each other from running, because Python runs one at a time.
    """
    return DEFAULT_SPIN_US if alone and len(os.sched_getaffinity(0)) > 1 else 0


class Guest:
    """One guest. Make it in a trio task, `listen`, then `serve`.

    Args:
        config: Its settings.
        router: The other guests of this process.
        nursery: Where its proxies and published ports run.
        allow_uid: Users who may connect to the sockets of all guests.
        alone: Whether it is the only guest of this process.

    Raises:
        HostError: Its unix socket cannot be made, or there is no AF_VSOCK.
    """

    def __init__(
        self,
        config: VmConfig,
        router: VsockRouter,
        nursery: trio.Nursery,
        *,
        allow_uid: frozenset[int],
        alone: bool,
    ) -> None:
        self.config = config
        engine_config = config.engine(allow_uid=allow_uid, spin_us=default_spin_us(alone=alone))
        self._users = allowed_users(engine_config.allow_uid)
        self._nursery = nursery
        self._listener: trio.socket.SocketType | None = None
        self._connection: trio.socket.SocketType | None = None
        self._publishers: dict[Published | int, _Running] = {}
        """What is published, or the port of the host's vsock; and who listens for it."""
        self._closing = contextlib.ExitStack()
        self._sessions = 0
        self._connected = False
        self._log = {"guest_cid": config.guest_cid}
        self._proxies = ProxyHostSide(config.proxy, _others(config), nursery)
        self._heartbeat = Heartbeat(nursery, self._log) if config.heartbeat else None
        services = {HEARTBEAT_PORT: self._heartbeat.serve} if self._heartbeat is not None else {}
        self.engine = VsockEngine(engine_config, services=services, host_side=self._proxies, router=router)

    def listen(self, descriptor: int | None) -> None:
        """Make every listener of this guest.

        Args:
            descriptor: A vhost-user socket, connected or listening, instead of the configured path.

        Raises:
            HostError: One of them cannot be made.
            UsageError: There is no such descriptor.
        """
        if descriptor is not None:
            self._take_descriptor(descriptor)
        elif self.config.socket is not None:
            listener = UnixListener(self.config.socket, users=self._users)
            self._closing.callback(listener.close)
            self._listener = trio.socket.from_stdlib_socket(listener.socket)
        for place in _published(self.config):
            self._publish(place)

    def _publish(self, place: Published | int) -> None:
        """Listen at one more place.

        Raises:
            HostError: That is not possible.
        """
        if isinstance(place, Published):
            publisher = Publisher.open(place, users=self._users)
        else:
            publisher = Publisher([af_vsock.listen(place)], place, name=f"forward {place}")
        running = _Running(publisher, trio.CancelScope())
        self._publishers[place] = running
        self._nursery.start_soon(running.serve, self.engine)

    def change(self, config: VmConfig) -> None:
        """Proxy and publish what ``config`` says from now on; its other settings are ignored.

        Connections go on, those of ports that are not published any more as well. A place where we cannot
        listen is logged, and the others are served.
        """
        self.config = config
        self._proxies.replace(config.proxy)
        wanted = _published(config)
        for place in self._publishers.keys() - set(wanted):
            self._publishers.pop(place).stop()
        for place in wanted:
            if place not in self._publishers:
                try:
                    self._publish(place)
                except HostError as error:
                    LOGGER.error(str(error), extra=self._log)

    def _take_descriptor(self, descriptor: int) -> None:
        try:
            given = socket.socket(fileno=descriptor)
            listening = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except ValueError as error:
            raise UsageError(f"--fd {descriptor} is not a descriptor") from error
        except OSError as error:
            raise HostError(f"--fd {descriptor} is not a socket: {error.strerror}") from error
        self._closing.callback(given.close)
        if given.family != socket.AF_UNIX or given.type != socket.SOCK_STREAM:
            raise HostError(f"--fd {descriptor} is not a unix stream socket, as vhost-user wants")
        given.setblocking(False)
        if listening:
            self._listener = trio.socket.from_stdlib_socket(given)
        else:
            try:
                given.getpeername()
            except OSError as error:
                raise HostError(f"--fd {descriptor} neither listens nor is it connected") from error
            self._connection = trio.socket.from_stdlib_socket(given)

    async def serve(self) -> None:
        """Serve front-ends one after the other, for ever; with a connected ``--fd``, serve that one."""
        if self._connection is not None:
            await self._session(self._connection)
        while self._listener is not None:
            connection = await accept(self._listener)
            if may_connect(connection, self._users):  # type: ignore[arg-type]
                await self._session(connection)
            else:
                LOGGER.warning("a front-end of another user was refused", extra=self._log)
                connection.close()

    async def _session(self, connection: trio.socket.SocketType) -> None:
        self._sessions += 1
        self._connected = True
        LOGGER.info("front-end connected", extra=self._log)
        try:
            with connection:
                await session.serve(
                    connection, Backend(EngineDevice(self.engine), queue_size_max=self.config.queue_size)
                )
        except (VsockError, OSError) as error:
            LOGGER.error("front-end dropped", extra={**self._log, "why": str(error)})
        else:
            LOGGER.info("front-end gone", extra=self._log)
        finally:
            self._connected = False
            # Errors of bad chains hold frames that hold views of the guest's memory: let go of it now.
            gc.collect()

    def report(self) -> stats.VmReport:
        """This guest's state and counters."""
        services = {
            f"proxy {port}": {"connections": route.connections, "refused": route.refused}
            for port, route in self._proxies.routes.items()
        } | {
            running.publisher.name: {
                "connections": running.publisher.connections,
                "refused": running.publisher.refused,
            }
            for running in self._publishers.values()
        }
        if self._heartbeat is not None:
            services["heartbeat"] = {"answered": self._heartbeat.answered, "wrong": self._heartbeat.wrong}
        return {
            "guest_cid": self.config.guest_cid,
            "connected": self._connected,
            "sessions": self._sessions,
            "counters": asdict(self.engine.counters()),
            "services": services,
        }

    def close(self) -> None:
        """Close every socket, and remove their files."""
        self.engine.close()
        for running in self._publishers.values():
            running.stop()
        self._closing.close()


@dataclass(frozen=True, slots=True)
class _Running:
    """A publisher, and what ends its task before its sockets are closed."""

    publisher: Publisher
    scope: trio.CancelScope

    async def serve(self, engine: VsockEngine) -> None:
        with self.scope:
            await self.publisher.serve(engine)

    def stop(self) -> None:
        self.scope.cancel()
        self.publisher.close()


def _published(config: VmConfig) -> list[Published | int]:
    return [*config.publish, *sorted(config.forward_listen)]


def _others(config: VmConfig) -> HostSide:
    """Where connections to the ports go that are not proxied.

    Raises:
        HostError: There is no AF_VSOCK, and it is wanted.
    """
    if config.forward_cid is not None:
        af_vsock.check_available()
        return af_vsock.AfVsockHostSide(config.forward_cid)
    if config.uds_path is not None:
        return UnixHostSide(config.uds_path)
    return RefusingHostSide()
