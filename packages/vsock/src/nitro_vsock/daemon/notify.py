"""Tell systemd, or whoever started us, how we are: the protocol of sd_notify(3)."""

import os
import socket
import time
from collections.abc import Callable, Mapping

from nitro_vsock.daemon.logs import LOGGER


class Notifier:
    """Sends states to the socket that the environment names; without one, nothing happens.

    Args:
        environment: Where ``NOTIFY_SOCKET`` is looked for.
        clock_ns: Nanoseconds of CLOCK_MONOTONIC, which systemd compares with its own.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # An @ stands for the zero byte of the abstract namespace (unix(7)). Other forms are not for us.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path if path.startswith("/") else None
        self._clock_ns = clock_ns

    def ready(self, status: str) -> None:
        """We serve.

        Args:
            status: What we do, for people.
        """
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """We read the configuration again; `ready` follows."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={self._clock_ns() // 1000}")

    def stopping(self) -> None:
        """We are about to end."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notify:
                notify.connect(self._address)
                notify.send(state.encode())
        except OSError as error:
            LOGGER.warning("cannot notify", extra={"why": error.strerror})
