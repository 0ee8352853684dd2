"""The whole daemon: a data thread for each guest's bytes, trio for everything slow.

Guests that do not reach each other are served by processes of their own, see `supervisor`; each process
is what follows.

For every guest there is an engine, a vhost-user listener that serves one front-end after the other, and what
the configuration publishes, proxies and forwards. SIGTERM and SIGINT end it all in order: sessions first, so
that rings stop where they are, then the data threads, then the sockets and their files.
"""

import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import trio

from nitro_vsock.config import VsockConfig
from nitro_vsock.daemon import data, forward, logs, session, stats, supervisor
from nitro_vsock.daemon.config import DaemonConfig, Published, VmConfig
from nitro_vsock.daemon.device import EngineDevice
from nitro_vsock.daemon.logs import LOGGER
from nitro_vsock.daemon.proxy import ProxyHostSide, check_allowed
from nitro_vsock.engine import VsockEngine
from nitro_vsock.errors import HostError, UsageError, VsockError
from nitro_vsock.host_side import HostSide, UnixHostSide, UnixListener, allowed_users, may_connect
from nitro_vsock.packet import HOST_CID, SocketType
from nitro_vsock.router import VsockRouter
from nitro_vsock.vhost_user.backend import Backend

NO_LISTENER = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
"""Errors of accept(2) that will not go away; the others are of one connection, or of the host for now."""
ADDRESS_ABSENT = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
ACCEPT_RETRY_S = 1.0
"""How long not to accept after the host ran out of something."""

DEFAULT_SPIN_US = 30
"""Longer than most answers take, shorter than going to sleep and waking up cost (`nox -s 'bench(vsock)'`)."""

DESCRIPTORS_PER_GUEST = 64
"""What a guest takes besides connections: listeners, rings, memory, connections to be proxied."""

GARBAGE_THRESHOLD = 20_000
"""Every batch makes hundreds of objects, in no cycles, and forgets them: not worth looking so often."""


class Nobody:
    """The host side of a guest that may connect nowhere."""

    def connect(self, port: int, socket_type: SocketType) -> socket.socket:
        """Refuse; see `HostSide.connect`."""
        raise FileNotFoundError(f"no listener for port {port} ({socket_type.name})")


def run(
    config: DaemonConfig, *, descriptor: int | None = None, supervisor_descriptor: int | None = None
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: All guests.
        descriptor: A vhost-user socket for the only guest, connected or listening, instead of its path.
        supervisor_descriptor: The socket to the process that started this one to serve a part of its guests.

    Raises:
        UsageError: The allow-list does not allow a proxy.
        HostError: A socket cannot be made, or there is no AF_VSOCK.
        WorkerError: Another process could not serve its part of the guests.
    """
    if config.proxy_allowlist is not None:
        for vm in config.vms:
            for proxied in vm.proxy:
                check_allowed(proxied.target, config.proxy_allowlist)
    parts = supervisor.split(config)
    try:
        if len(parts) == 1 or supervisor_descriptor is not None:
            _raise_descriptor_limit(config)
            trio.run(_serve_here, config, descriptor, supervisor_descriptor)
        else:
            trio.run(_supervise, config, parts)
    except (BaseExceptionGroup, OSError) as error:
        first = _first(error)
        if isinstance(first, OSError):
            raise HostError(f"the host refuses: {first.strerror}") from first
        raise first from None


def _raise_descriptor_limit(config: DaemonConfig) -> None:
    """Let this process have all the descriptors that it may, and say so if that is too few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = sum(vm.connections + vm.half_open + DESCRIPTORS_PER_GUEST for vm in config.vms)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        LOGGER.warning(
            "the limit of open files is lower than what all connections may need: raise it (ulimit -n), or"
            " lower --connections",
            extra={"limit": hard, "wanted": wanted},
        )


def _first(error: BaseException) -> BaseException:
    """What went wrong first, without the groups that nurseries put around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _supervise(config: DaemonConfig, parts: list[DaemonConfig]) -> None:
    """Have every part of the guests served by a process of its own."""
    workers = [supervisor.Worker(part, logs.options()) for part in parts]

    async def report() -> list[stats.VmReport]:
        found: dict[supervisor.Worker, list[stats.VmReport]] = {}

        async def ask(worker: supervisor.Worker) -> None:
            found[worker] = await worker.report()

        async with trio.open_nursery() as asking:
            for worker in workers:
                asking.start_soon(ask, worker)
        return [each for worker in workers for each in found[worker]]

    with _signals() as signals, _stats_listener(config) as listener:
        async with trio.open_nursery() as watching:
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    async with trio.open_nursery() as starting:
                        for worker in workers:
                            starting.start_soon(nursery.start, worker.run)
                    if listener is not None:
                        nursery.start_soon(stats.serve, partial(_accept, listener), report)
                    _say_serving(config, logging.INFO)

                nursery.start_soon(serve)
                await _signalled(signals, logging.INFO)
                watching.start_soon(_ignore, signals)
                nursery.cancel_scope.cancel()
            watching.cancel_scope.cancel()
    for part in parts:
        supervisor.remove_sockets(part)


async def _serve_here(
    config: DaemonConfig, descriptor: int | None, supervisor_descriptor: int | None
) -> None:
    """Serve all guests in this process."""
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_signals())
        async with trio.open_nursery() as nursery:
            router = VsockRouter()
            guests = []
            for vm in config.vms:
                guest = Guest(vm, router, nursery, allowed_uids=config.allow_uid, alone=len(config.vms) == 1)
                stack.callback(guest.close)
                guest.listen(descriptor)
                guests.append(guest)

            async def report() -> list[stats.VmReport]:
                return [guest.report() for guest in guests]

            listener = stack.enter_context(_stats_listener(config))
            if listener is not None:
                nursery.start_soon(stats.serve, partial(_accept, listener), report)
            gc.freeze()
            gc.set_threshold(GARBAGE_THRESHOLD)
            async with data.running(guest.engine for guest in guests), trio.open_nursery() as sessions:

                async def serve(part: Callable[[], Awaitable[None]]) -> None:
                    """Serve until one part is over."""
                    await part()
                    sessions.cancel_scope.cancel()

                for guest in guests:
                    sessions.start_soon(serve, guest.serve)
                level = logging.INFO  # of what the supervisor says for all its processes
                if supervisor_descriptor is not None:
                    level = logging.DEBUG
                    sessions.start_soon(serve, partial(supervisor.obey, supervisor_descriptor, report))
                sessions.start_soon(serve, partial(_signalled, signals, level))
                _say_serving(config, level)
            nursery.cancel_scope.cancel()


def _signals() -> contextlib.AbstractContextManager[AsyncIterator[int]]:
    return trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT)


async def _signalled(signals: AsyncIterator[int], level: int) -> None:
    """Wait for the end."""
    async for number in signals:
        LOGGER.log(level, "ending", extra={"signal": signal.Signals(number).name})
        break


async def _ignore(signals: AsyncIterator[int]) -> None:
    """We are ending already."""
    async for _ in signals:
        pass


def _say_serving(config: DaemonConfig, level: int) -> None:
    LOGGER.log(level, "serving", extra={"guests": [vm.guest_cid for vm in config.vms]})


@contextlib.contextmanager
def _stats_listener(config: DaemonConfig) -> Iterator[trio.socket.SocketType | None]:
    if config.stats is None:
        yield None
        return
    with contextlib.closing(UnixListener(config.stats)) as listener:
        yield trio.socket.from_stdlib_socket(listener.socket)


def _spin_us(config: VmConfig, *, alone: bool) -> int:
    """What was chosen, else a time that pays on machines with a processor to spare.

    Not with several guests in one process: their threads would keep each other from running.
    """
    if config.spin_us is not None:
        return config.spin_us
    return DEFAULT_SPIN_US if alone and len(os.sched_getaffinity(0)) > 1 else 0


class Guest:
    """One guest: its engine, its front-ends, and the ways to it."""

    def __init__(
        self,
        config: VmConfig,
        router: VsockRouter,
        nursery: trio.Nursery,
        *,
        allowed_uids: frozenset[int],
        alone: bool,
    ) -> None:
        self.config = config
        self._users = allowed_users(allowed_uids)
        self._nursery = nursery
        self._listener: trio.socket.SocketType | None = None
        self._connection: trio.socket.SocketType | None = None
        self._closing = contextlib.ExitStack()
        self._sessions = 0
        self._connected = False
        others: HostSide = Nobody()
        if config.forward_cid is not None:
            forward.check_available()
            others = forward.VsockHostSide(config.forward_cid)
        elif config.uds_path is not None:
            others = UnixHostSide(config.uds_path)
        self._proxies = ProxyHostSide({p.port: p.target for p in config.proxy}, others, nursery)
        self.engine = VsockEngine(
            VsockConfig(
                guest_cid=config.guest_cid,
                uds_path=config.uds_path,
                host_cids=self._host_cids(),
                ok_port=config.ok_port,
                any_cid=config.forward_cid is not None,
                seqpacket=config.seqpacket,
                groups=config.groups,
                buf_alloc=config.tx_buffer_size,
                connections_max=config.connections,
                half_open_max=config.half_open,
                buffered_bytes_max=config.buffered_bytes,
                allowed_uids=allowed_uids,
                spin_s=_spin_us(config, alone=alone) / 1e6,
            ),
            host_side=self._proxies if config.proxy else others,
            router=router,
        )
        self._log = {"guest_cid": config.guest_cid}

    def _host_cids(self) -> frozenset[int]:
        forwarded = self.config.forward_cid
        extra = {forwarded} if forwarded is not None and forwarded >= HOST_CID else set()
        return (self.config.local_cids | extra) - {self.config.guest_cid}

    def listen(self, descriptor: int | None) -> None:
        """Make every listener of this guest.

        Raises:
            HostError: One of them cannot be made.
        """
        if descriptor is not None:
            self._take_descriptor(descriptor)
        elif self.config.socket is not None:
            listener = UnixListener(self.config.socket, users=self._users)
            self._closing.callback(listener.close)
            self._listener = trio.socket.from_stdlib_socket(listener.socket)
        for published in self.config.publish:
            self._publish(published)
        for port in self.config.forward_listen:
            carried = forward.listen(port)
            self._closing.callback(carried.close)
            self._carry(carried, port)

    def _take_descriptor(self, descriptor: int) -> None:
        try:
            given = socket.socket(fileno=descriptor)
            listening = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except ValueError as error:
            raise UsageError(f"--fd {descriptor} is no descriptor") from error
        except OSError as error:
            raise HostError(f"--fd {descriptor} is no socket: {error.strerror}") from error
        self._closing.callback(given.close)
        if given.family != socket.AF_UNIX or given.type != socket.SOCK_STREAM:
            raise HostError(f"--fd {descriptor} is no unix stream socket, as vhost-user wants")
        given.setblocking(False)
        if listening:
            self._listener = trio.socket.from_stdlib_socket(given)
        else:
            try:
                given.getpeername()
            except OSError as error:
                raise HostError(f"--fd {descriptor} neither listens nor is it connected") from error
            self._connection = trio.socket.from_stdlib_socket(given)

    def _publish(self, published: Published) -> None:
        where = published.listen
        if isinstance(where, Path):
            listener = UnixListener(where, users=self._users)
            self._closing.callback(listener.close)
            self._carry(listener.socket, published.port, check=True)
            return
        host = None if where.host == "*" else where.host
        refused: OSError | None = None
        servers = []
        try:
            found = socket.getaddrinfo(host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise HostError(f"cannot publish at {where}: {error.strerror}") from error
        for family, *_, address in dict.fromkeys(found):
            try:
                server = socket.create_server(address, family=family, backlog=128)
            except OSError as error:
                if error.errno not in ADDRESS_ABSENT:
                    raise HostError(f"cannot publish at {where}: {error.strerror}") from error
                refused = error  # a name may have an address of a family that this host has not
                continue
            servers.append(server)
            self._closing.callback(server.close)
            self._carry(server, published.port)
        if not servers:
            raise HostError(f"cannot publish at {where}: {refused.strerror if refused else 'no address'}")

    def _carry(self, listener: socket.socket, port: int, *, check: bool = False) -> None:
        """Join whoever connects with a port of the guest; ``check``: only users that may."""

        async def carry() -> None:
            accepting = trio.socket.from_stdlib_socket(listener)
            while True:
                connection = _to_stdlib(await _accept(accepting))
                if check and not may_connect(connection, self._users):
                    connection.close()
                else:
                    self.engine.adopt(connection, port)

        self._nursery.start_soon(carry)

    async def serve(self) -> None:
        """Serve front-ends, one after the other, for ever; with a connected ``--fd``, that one."""
        if self._connection is not None:
            await self._session(self._connection)
        while self._listener is not None:
            connection = await _accept(self._listener)
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
        return {
            "guest_cid": self.config.guest_cid,
            "connected": self._connected,
            "sessions": self._sessions,
            "counters": asdict(self.engine.counters()),
            "services": {
                f"proxy {port}": {"connections": endpoint.connections, "refused": endpoint.refused}
                for port, endpoint in self._proxies.endpoints.items()
            },
        }

    def close(self) -> None:
        """Close every socket and remove their files."""
        self.engine.close()
        self._closing.close()


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    """The next connection, however long it takes the host to have a descriptor for it."""
    while True:
        try:
            connection, _ = await listener.accept()
        except OSError as error:
            if error.errno in NO_LISTENER:
                raise
            if error.errno == errno.ECONNABORTED:
                continue
            LOGGER.error("cannot accept", extra={"why": error.strerror})
            await trio.sleep(ACCEPT_RETRY_S)
        else:
            return connection


def _to_stdlib(connection: trio.socket.SocketType) -> socket.socket:
    found = socket.socket(fileno=connection.detach())
    found.setblocking(False)
    return found
