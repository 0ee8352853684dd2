"""The local KMS of an enclave, on a port of its parent: the KMS of `nitro_nsm.kms` behind trio's streams.

A connection may begin with TLS or with plain HTTP; its first byte tells which. So programs that insist on
``https://kms.REGION.amazonaws.com`` and those that were given an ``http://`` address use the same port.
"""

import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import trio

from nitro_nsm import TrustRoot
from nitro_nsm.kms.config import KmsConfig
from nitro_vmm.config import EnclaveConfig, Endpoint, KmsSettings
from nitro_vmm.enclave.published import listen_at
from nitro_vmm.errors import HostError

if TYPE_CHECKING:
    from nitro_nsm.kms.service import Kms

logger = logging.getLogger(__name__)

READ_BYTES: Final = 1 << 16
IDLE_TIMEOUT_S: Final = 60.0
"""AWS closes idle connections, too; clients open another one."""
CONNECTIONS_MAX: Final = 256
"""Many more than the programs of an enclave open. Later ones are closed, so that a guest cannot use up
sockets."""
TLS_HANDSHAKE: Final = b"\x16"
"""The first byte of a TLS connection (RFC 8446 §5.1), and of no HTTP request."""


class LocalKms:
    """Serves connections, one request at a time.

    Args:
        kms: Answers the requests.
        tls: For connections that begin with TLS.
        listener: Where this machine's programs connect, if they may.
    """

    def __init__(self, kms: "Kms", tls: ssl.SSLContext, listener: socket.socket | None) -> None:
        self.endpoint: Endpoint | None = None
        """Where this machine's programs reach it."""
        if listener is not None:
            host, port = listener.getsockname()[:2]
            self.endpoint = Endpoint(host=host, port=port)
        self._kms = kms
        self._tls = tls
        self._listener = listener
        self._nursery: trio.Nursery | None = None
        self._connections = 0
        self._turn = trio.CapacityLimiter(1)  # the KMS is not safe to use from several threads at once

    def start(self, nursery: trio.Nursery) -> None:
        """Serve until the nursery is cancelled."""
        self._nursery = nursery
        if self._listener is not None:
            nursery.start_soon(self._listen, self._listener)

    def serve(self, sock: socket.socket) -> None:
        """Serve a connection of the enclave's; for the loop's own thread."""
        if self._nursery is None:
            sock.close()
        else:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            self._nursery.start_soon(self._converse, stream)

    async def _listen(self, listener: socket.socket) -> None:
        listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        await trio.serve_listeners(self._converse, [listening])

    async def _converse(self, stream: trio.SocketStream) -> None:
        async with stream:
            if self._connections >= CONNECTIONS_MAX:
                logger.warning("the KMS has %d connections and closes another one", CONNECTIONS_MAX)
                return
            self._connections += 1
            try:
                await self._answer(stream)
            except trio.TooSlowError:
                logger.info("a connection to the KMS was idle for %g seconds", IDLE_TIMEOUT_S)
            except (OSError, trio.BrokenResourceError) as error:
                # The client has left, or does not trust our authority.
                logger.info("a connection to the KMS broke off: %s", error.__cause__ or error)
            finally:
                self._connections -= 1

    async def _answer(self, plain: trio.SocketStream) -> None:
        from nitro_nsm.kms.http import Conversation  # noqa: PLC0415 - of an extra

        with trio.fail_after(IDLE_TIMEOUT_S):
            first = await plain.socket.recv(1, socket.MSG_PEEK)
        if not first:
            return  # the client has left without a word
        stream: trio.abc.Stream = plain
        if first == TLS_HANDSHAKE:
            stream = trio.SSLStream(plain, self._tls, server_side=True, https_compatible=True)
        conversation = Conversation(self._kms)
        while not conversation.closed:
            with trio.fail_after(IDLE_TIMEOUT_S):
                data = await stream.receive_some(READ_BYTES)
            # In a thread, because making an RSA key takes seconds, and the enclave's other connections go on.
            answer = await trio.to_thread.run_sync(conversation.receive, bytes(data), limiter=self._turn)
            with trio.fail_after(IDLE_TIMEOUT_S):
                await stream.send_all(answer)


def open_local_kms(
    config: EnclaveConfig,
    settings: KmsSettings,
    root: TrustRoot,
    resources: ExitStack,
    say: Callable[[str], None],
) -> LocalKms:
    """Open an enclave's KMS, with the keys of its state's file.

    Args:
        config: The enclave's.
        settings: The KMS's.
        root: The root that documents must lead to: the enclave's own.
        resources: Gets the listening socket, which is closed when the enclave has ended.
        say: Told where it is, for people.

    Raises:
        HostError: The extra is not installed, or its address is in use.
        NsmError: The keys or the authority for HTTPS cannot be read or made.
    """
    try:
        from nitro_nsm.kms.server import open_kms  # noqa: PLC0415 - of an extra
        from nitro_nsm.kms.tls import server_context  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise HostError(f"a local KMS needs {error.name}", hint="pip install 'nitro-vmm[kms]'") from error
    kms = open_kms(kms_config(config, settings), root)
    tls = server_context(kms.config.region)
    listener = None
    if settings.listen is not None:
        listener = listen_at(settings.listen, "serve the KMS", hint="give another listen=HOST:PORT")
        resources.callback(listener.close)
    local = LocalKms(kms, tls, listener)
    also = "" if local.endpoint is None else f", and at {local.endpoint} on this machine"
    say(f"a KMS of {kms.config.region} is at port {settings.port} of the parent{also}")
    return local


def kms_config(config: EnclaveConfig, settings: KmsSettings) -> KmsConfig:
    """What a KMS gets to know: its own settings, and the enclave's where it has none."""
    fields: dict[str, object] = {"region": config.region}
    if config.role_arn is not None:
        fields |= {"caller": config.role_arn, "account": config.role_arn.split(":")[4]}
    given = settings.model_dump(exclude_unset=True, exclude={"port", "listen"})
    return KmsConfig.model_validate(fields | given)
