"""The whole daemon: a data thread for each guest's bytes, and trio for everything slow.

Guests that do not reach each other are served by processes of their own (`supervisor`), and each such
process is what this module runs. For every guest there is an engine, a vhost-user listener that serves one
front-end after the other, and what the configuration publishes, proxies and forwards (`guest`).

SIGHUP has the configuration read again. SIGTERM and SIGINT end it all in order: sessions first, so that rings
stop where they are, then the data threads, then the sockets and their files.
"""

import contextlib
import gc
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import trio

from nitro_vsock.daemon import data_threads, logs, stats, supervisor
from nitro_vsock.daemon.config import DaemonConfig
from nitro_vsock.daemon.guest import Guest
from nitro_vsock.daemon.logs import LOGGER
from nitro_vsock.daemon.notify import Notifier
from nitro_vsock.daemon.reload import merged
from nitro_vsock.device.router import VsockRouter
from nitro_vsock.errors import HostError, VsockError
from nitro_vsock.host import af_vsock
from nitro_vsock.host.endpoints import addresses
from nitro_vsock.host.listening import accept
from nitro_vsock.host.unix import UnixListener

DESCRIPTORS_PER_GUEST = 64
"""What a guest takes besides connections: listeners, rings, memory, connections to be proxied."""

GARBAGE_THRESHOLD = 20_000
"""Every batch makes hundreds of objects, none of them in a cycle, and forgets them. So the collector of
cycles need not look as often as it does by default."""


def check(config: DaemonConfig) -> None:
    """Check what the models cannot, because it is a matter of this host or of the network.

    Whether sockets are in use is left to the start, because the daemon that uses them may be the one that
    shall read this configuration next.

    Raises:
        UsageError: The allow-list does not allow a proxy.
        HostError: There is no AF_VSOCK, no folder for a socket, or no address of a name where a port is
            published.
    """
    _check_folder(config.stats)
    for vm in config.vms:
        if config.proxy_allowlist is not None:
            for proxied in vm.proxy:
                config.proxy_allowlist.check(proxied.target)
        if vm.forward_cid is not None or vm.forward_listen:
            af_vsock.check_available()
        _check_folder(vm.socket)
        _check_folder(vm.uds_path)
        for published in vm.publish:
            if isinstance(published.listen, Path):
                _check_folder(published.listen)
            else:
                addresses(published.listen)


def _check_folder(path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise HostError(
            f"cannot listen on {path}: there is no folder {path.parent}",
            hint="make it, or choose another path",
        )


def run(
    config: DaemonConfig,
    *,
    read_again: Callable[[], DaemonConfig],
    descriptor: int | None = None,
    supervisor_descriptor: int | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT; returns whether it was SIGINT.

    After SIGHUP the configuration is read again.

    Args:
        config: All guests.
        read_again: Reads the configuration again, and raises `VsockError` if it cannot be used.
        descriptor: A vhost-user socket for the only guest, connected or listening, instead of its path.
        supervisor_descriptor: The socket to the process that started this one to serve a part of its guests.

    Raises:
        UsageError: There is no such descriptor.
        HostError: A socket cannot be made, or there is no AF_VSOCK.
        WorkerError: Another process could not serve its part of the guests.
        ExceptionGroup: Several things went wrong at the same time that are not all of these.
    """
    parts = supervisor.split(config)
    try:
        if len(parts) == 1 or supervisor_descriptor is not None:
            _raise_descriptor_limit(config)
            return trio.run(_serve_here, config, read_again, descriptor, supervisor_descriptor)
        return trio.run(_supervise, config, parts, read_again)
    except (BaseExceptionGroup, OSError) as error:
        found = _one(error)
        if found is error:
            raise
        raise found from error


def _raise_descriptor_limit(config: DaemonConfig) -> None:
    """Let this process have all the descriptors that it may, and say so if that is too few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = sum(vm.connections_max + vm.half_open_max + DESCRIPTORS_PER_GUEST for vm in config.vms)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        LOGGER.warning(
            "the limit of open files is lower than what all connections may need: raise it (ulimit -n), or"
            " lower --connections-max",
            extra={"limit": hard, "wanted": wanted},
        )


def _one(error: BaseException) -> BaseException:
    """What the command line reports of an error that nurseries have put into groups.

    Errors of the kinds that users meet become the first of them, and the others are logged, so that none is
    lost. If there is one of another kind it is a fault of ours, and the whole group is raised with all its
    tracebacks.
    """
    found = list(_leaves(error))
    if not all(isinstance(each, VsockError | OSError) for each in found):
        return error
    first, *others = (
        HostError(f"the host refuses: {each.strerror or each}") if isinstance(each, OSError) else each
        for each in found
    )
    for other in others:
        LOGGER.error("another error at the same time", extra={"why": str(other)})
    return first


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


class Reloader:
    """Has a new configuration served.

    Args:
        config: What is served.
        read_again: Reads the configuration again.
        change: Has the guests proxied and published as a configuration says.
        notifier: Whom to tell.
    """

    def __init__(
        self,
        config: DaemonConfig,
        read_again: Callable[[], DaemonConfig],
        change: Callable[[DaemonConfig], Awaitable[None]],
        notifier: Notifier,
    ) -> None:
        self._config = config
        self._read_again = read_again
        self._change = change
        self._notifier = notifier

    async def reload(self) -> None:
        """Read the configuration again, and serve it as far as that is possible without a restart.

        One that cannot be used is logged, and changes nothing.
        """
        self._notifier.reloading()
        try:
            # Reading may wait for disks and name servers, and the guests should not.
            config, left = merged(self._config, await trio.to_thread.run_sync(self._read_again))
        except VsockError as error:
            LOGGER.error("the configuration is not changed", extra={"why": str(error)})
            self._notifier.ready("the configuration was not changed, see the log")
            return
        await self._change(config)
        self._config = config
        if left:
            LOGGER.warning("some of the configuration needs a restart", extra={"changed": left})
        guests = [vm.guest_cid for vm in config.vms]
        LOGGER.info("the configuration was read again", extra={"guests": guests})
        self._notifier.ready(f"serving guests {', '.join(map(str, guests))}")


async def _supervise(
    config: DaemonConfig, parts: list[DaemonConfig], read_again: Callable[[], DaemonConfig]
) -> bool:
    """Have every part of the guests served by a process of its own; returns whether SIGINT ended it."""
    workers = [supervisor.Worker(part, logs.options()) for part in parts]

    async def report() -> list[stats.VmReport]:
        found: dict[supervisor.Worker, list[stats.VmReport]] = {}

        async def ask(worker: supervisor.Worker) -> None:
            found[worker] = await worker.report()

        async with trio.open_nursery() as asking:
            for worker in workers:
                asking.start_soon(ask, worker)
        return [each for worker in workers for each in found[worker]]

    async def change(config: DaemonConfig) -> None:
        for worker, part in zip(workers, supervisor.split(config), strict=True):
            await worker.change(part)

    notifier = Notifier()
    reloader = Reloader(config, read_again, change, notifier)
    with _signals() as signals, _stats_listener(config) as listener:
        async with trio.open_nursery() as watching:
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    async with trio.open_nursery() as starting:
                        for worker in workers:
                            starting.start_soon(nursery.start, worker.run)
                    if listener is not None:
                        nursery.start_soon(stats.serve, partial(accept, listener), report)
                    _say_serving(config, logging.INFO, notifier)

                nursery.start_soon(serve)
                interrupted = await _signalled(signals, logging.INFO, reloader)
                notifier.stopping()
                watching.start_soon(_ignore, signals)
                nursery.cancel_scope.cancel()
            watching.cancel_scope.cancel()
    for part in parts:
        supervisor.remove_sockets(part)
    return interrupted


async def _serve_here(
    config: DaemonConfig,
    read_again: Callable[[], DaemonConfig],
    descriptor: int | None,
    supervisor_descriptor: int | None,
) -> bool:
    """Serve all guests in this process; returns whether SIGINT ended it."""
    interrupted = False
    # Where there is a supervisor, it speaks for all its processes, and has them change when it reads anew.
    notifier = Notifier({} if supervisor_descriptor is not None else os.environ)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_signals())
        async with trio.open_nursery() as nursery:
            router = VsockRouter()
            guests = []
            for vm in config.vms:
                guest = Guest(vm, router, nursery, allow_uid=config.allow_uid, alone=len(config.vms) == 1)
                stack.callback(guest.close)
                guest.listen(descriptor)
                guests.append(guest)

            async def report() -> list[stats.VmReport]:
                return [guest.report() for guest in guests]

            def change(config: DaemonConfig) -> None:
                for guest, vm in zip(guests, config.vms, strict=True):
                    guest.change(vm)

            async def change_here(config: DaemonConfig) -> None:
                change(config)

            reloader = None
            if supervisor_descriptor is None:
                reloader = Reloader(config, read_again, change_here, notifier)
            listener = stack.enter_context(_stats_listener(config))
            if listener is not None:
                nursery.start_soon(stats.serve, partial(accept, listener), report)
            gc.freeze()
            gc.set_threshold(GARBAGE_THRESHOLD)
            async with (
                data_threads.running(guest.engine for guest in guests),
                trio.open_nursery() as sessions,
            ):

                async def serve(part: Callable[[], Awaitable[None]]) -> None:
                    """Serve until one part is over."""
                    await part()
                    sessions.cancel_scope.cancel()

                async def wait_for_end() -> None:
                    nonlocal interrupted
                    interrupted = await _signalled(signals, level, reloader)
                    notifier.stopping()

                for guest in guests:
                    sessions.start_soon(serve, guest.serve)
                # A supervisor says for all its processes that they serve, so they themselves say it for
                # debugging.
                level = logging.INFO
                if supervisor_descriptor is not None:
                    level = logging.DEBUG
                    sessions.start_soon(
                        serve, partial(supervisor.obey, supervisor_descriptor, report, change)
                    )
                sessions.start_soon(serve, wait_for_end)
                _say_serving(config, level, notifier)
            nursery.cancel_scope.cancel()
    return interrupted


def _signals() -> contextlib.AbstractContextManager[AsyncIterator[int]]:
    return trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def _signalled(signals: AsyncIterator[int], level: int, reloader: Reloader | None) -> bool:
    """Wait for the signal to end, and reload meanwhile when told so; returns whether it was SIGINT."""
    while True:
        number = await anext(signals)
        if number != signal.SIGHUP:
            LOGGER.log(level, "ending", extra={"signal": signal.Signals(number).name})
            return number == signal.SIGINT
        if reloader is not None:
            await reloader.reload()


async def _ignore(signals: AsyncIterator[int]) -> None:
    """Take further signals to end, because we are ending already."""
    async for _ in signals:
        pass


def _say_serving(config: DaemonConfig, level: int, notifier: Notifier) -> None:
    guests = [vm.guest_cid for vm in config.vms]
    LOGGER.log(level, "serving", extra={"guests": guests})
    notifier.ready(f"serving guests {', '.join(map(str, guests))}")


@contextlib.contextmanager
def _stats_listener(config: DaemonConfig) -> Iterator[trio.socket.SocketType | None]:
    """The listening socket for those who ask for the counters, if there shall be one.

    Raises:
        HostError: It cannot be made.
    """
    if config.stats is None:
        yield None
        return
    with contextlib.closing(UnixListener(config.stats)) as listener:
        yield trio.socket.from_stdlib_socket(listener.socket)
