"""`Enclave` for programs that run asyncio; connections are its streams.

The enclave's own loop runs in a thread, and each call waits for it in another one.
"""

import asyncio
from types import TracebackType
from typing import Any, Self

from nitro_eif import Measurements
from nitro_vmm.blocking import BlockingEnclave
from nitro_vmm.config import EnclaveConfig
from nitro_vmm.enclave import Result, Timeline

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AsyncioEnclave:
    """One launch. ``async with`` boots the enclave, and leaving the block ends it.

    Args:
        config: What to launch.
        options: See `Enclave`.

    Raises:
        VmmError, EifError, VsockError, NsmError, OSError: On entering the block, see `Enclave`.
    """

    def __init__(self, config: EnclaveConfig, **options: Any) -> None:  # noqa: ANN401 - those of `Enclave`
        self.blocking: BlockingEnclave = BlockingEnclave(config, **options)
        """The same enclave, for other threads."""

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.blocking.__enter__)
        except asyncio.CancelledError:  # the thread goes on
            await asyncio.shield(asyncio.to_thread(self.blocking.give_up))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self.blocking.close))

    @property
    def measurements(self) -> Measurements:
        """PCR0, PCR1, PCR2 and PCR8 of the image."""
        return self.blocking.measurements

    @property
    def timeline(self) -> Timeline:
        """When what happened, from the launch on."""
        return self.blocking.timeline

    @property
    def console_output(self) -> bytes:
        """What it has printed, as far as it is kept."""
        return self.blocking.console_output

    async def booted(self, timeout_s: float | None = None) -> float:
        """See `BlockingEnclave.booted`."""
        return await asyncio.to_thread(self.blocking.booted, timeout_s)

    async def wait(self, timeout_s: float | None = None) -> Result:
        """See `BlockingEnclave.wait`."""
        return await asyncio.to_thread(self.blocking.wait, timeout_s)

    async def stop(self, reason: str = "ended by its parent") -> Result:
        """See `BlockingEnclave.stop`."""
        return await asyncio.to_thread(self.blocking.stop, reason)

    async def connect(self, port: int, timeout_s: float | None = None) -> Streams:
        """Connect to a vsock port of the enclave; see `BlockingEnclave.connect`."""
        sock = await asyncio.to_thread(self.blocking.connect, port, timeout_s)
        return await asyncio.open_unix_connection(sock=sock)

    async def attest(
        self, *, nonce: bytes | None = None, user_data: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """An attestation document with the registers as they are now; see `Enclave.attest`."""
        return await asyncio.to_thread(
            self.blocking.attest, nonce=nonce, user_data=user_data, public_key=public_key
        )

    async def send_input(self, data: bytes) -> None:
        """Type on the enclave's console."""
        await asyncio.to_thread(self.blocking.send_input, data)
