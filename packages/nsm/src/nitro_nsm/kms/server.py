"""A KMS on sockets: TCP and unix, plain and with TLS; and its keys in a file.

`answer_stream` serves one accepted connection, for programs that listen themselves.
"""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

from nitro_nsm import system
from nitro_nsm.errors import HostError, InputError
from nitro_nsm.kms.config import KmsConfig
from nitro_nsm.kms.http import Conversation
from nitro_nsm.kms.keys import KeyStore
from nitro_nsm.kms.service import Kms
from nitro_nsm.pki.trust import TrustRoot
from nitro_nsm.unix_socket import allowed_users, listening, may_connect

READ_BYTES = 1 << 16
IDLE_TIMEOUT_S = 60.0
"""AWS closes idle connections, too; clients open another one."""
CONNECTIONS_MAX = 256
"""Many more than the programs of an enclave open; later ones are closed."""


def open_kms(config: KmsConfig, root: TrustRoot) -> Kms:
    """A KMS with the keys of its state's file, which are saved again whenever they change.

    Args:
        config: Account, callers, demands, and where the keys are kept.
        root: The root that attestation documents must lead to.

    Raises:
        InputError: The file is not the state of a KMS.
        HostError: The file cannot be read.
    """
    store = KeyStore(config.account, config.region)
    path = config.state_path
    kms = Kms(config, store, root, entropy=system.entropy, clock=system.now_ns)
    if path is None:
        return kms
    known = _version(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file", hint="name another --state")
    try:
        store.restore(json.loads(path.read_bytes()))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} has no keys of a KMS: {error}", hint="name another --state, or remove the file"
        ) from error

    def save() -> None:
        nonlocal known
        if _version(path) != known:
            raise HostError(
                f"{path} has been changed by another KMS since it was read",
                hint="let one KMS serve all, or give each a state of its own",
            )
        _save(path, json.dumps(store.state()).encode())
        known = _version(path)

    kms.changed = save
    return kms


async def answer_stream(kms: Kms, connection: socket.socket, *, tls: ssl.SSLContext | None = None) -> None:
    """Serve one connection that was accepted already, and close it.

    Args:
        kms: Answers the requests.
        connection: A stream socket.
        tls: For HTTPS.
    """
    if tls is None:
        reader, writer = await asyncio.open_connection(sock=connection)
    else:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=tls)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    await _converse(kms, reader, writer)


async def serve(
    kms: Kms,
    *,
    tcp: Iterable[tuple[str, int]] = (),
    unix: Iterable[Path] = (),
    tls: ssl.SSLContext | None = None,
    users: Iterable[int] = (),
    ready: Callable[[list[str]], None] = lambda _: None,
) -> None:
    """Serve until cancelled.

    Args:
        kms: Answers the requests.
        tcp: Hosts and ports to listen on; port 0 takes a free one.
        unix: Paths of unix sockets to listen on, which are removed in the end.
        tls: For HTTPS, on all of them; `None` for HTTP.
        users: Who may connect to the unix sockets besides root and the user that we run as.
        ready: Called when connections are possible, with the addresses.

    Raises:
        HostError: One of them cannot be listened on.
    """
    busy: set[asyncio.Task[None]] = set()
    allowed = allowed_users(users)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: socket.socket = writer.get_extra_info("socket")
        refused = peer.family == socket.AF_UNIX and not may_connect(peer, allowed)
        if refused or len(busy) >= CONNECTIONS_MAX:
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - we run in one
        busy.add(task)
        try:
            await _converse(kms, reader, writer)
        except asyncio.CancelledError:
            pass  # the server ends; asyncio would print a traceback for each connection
        finally:
            busy.discard(task)

    async with contextlib.AsyncExitStack() as stack:
        addresses = []
        for host, port in tcp:
            try:
                server = await asyncio.start_server(converse, host, port, ssl=tls)
            except OSError as error:
                raise HostError(
                    f"cannot listen on {host}:{port}: {error.strerror or error}", hint="choose another port"
                ) from error
            await stack.enter_async_context(server)
            bound = server.sockets[0].getsockname()[1]
            addresses.append(f"{'http' if tls is None else 'https'}://{host}:{bound}")
        for path in unix:
            listener = stack.enter_context(listening(path, users=users))
            server = await asyncio.start_unix_server(converse, sock=listener, ssl=tls)
            await stack.enter_async_context(server)
            addresses.append(f"unix:{path}")
        try:
            ready(addresses)
            await asyncio.get_running_loop().create_future()  # nothing but being cancelled ends this
        finally:
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)


async def _converse(kms: Kms, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    conversation = Conversation(kms)
    try:
        while not conversation.closed:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                data = await reader.read(READ_BYTES)
                writer.write(conversation.receive(data))
                await writer.drain()
    except (TimeoutError, ConnectionError, ssl.SSLError):
        pass  # the client has left, or has nothing more to say
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            await writer.wait_closed()


def _version(path: Path) -> tuple[int, int] | None:
    """What is another after each change of a file; `None` if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _save(path: Path, data: bytes) -> None:
    """Replace a file in one step, readable by its owner only."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror or error}") from error
