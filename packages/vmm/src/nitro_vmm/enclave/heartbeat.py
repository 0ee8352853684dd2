"""The heartbeat: the enclave's init sends a byte to its parent once it runs, and waits to get it back.

Source: ``eif_loader`` of nitro-cli, and AWS's init, which sends 0xB7 to CID 3, port 9000.
"""

from collections.abc import Callable
from typing import Final

import trio

from nitro_vmm.defaults import HEARTBEAT

FAILURES_SAID_MAX: Final = 3
"""How many wrong heartbeats are reported, because a guest can send them for ever."""


class Heartbeat:
    """When the heartbeat came, and the parent's part of it.

    Args:
        say: Told what happens, for people.
        seconds: The time since the launch.
        on_beat: Called when it has come.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        seconds: Callable[[], float],
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.at_s: float | None = None
        """When it came, in seconds since the launch; `None` while it has not."""
        self.came = trio.Event()
        """Set when it has come."""
        self._say = say
        self._seconds = seconds
        self._on_beat = on_beat
        self.failures = 0
        """How many connections to its port brought no heartbeat."""

    def note(self, at_s: float | None = None) -> None:
        """The enclave has booted: the first time counts.

        Args:
            at_s: When, in seconds since the launch; `None` is now.
        """
        if self.at_s is None:
            self.at_s = self._seconds() if at_s is None else at_s
            self._say(f"heartbeat after {self.at_s:.2f} s")
            self.came.set()
            self._on_beat()

    async def answer(self, stream: trio.abc.Stream) -> None:
        """Serve a connection to the heartbeat's port, and close it.

        A wrong byte gets no answer, because AWS's parent does not answer one either. The enclave may try
        again.
        """
        async with stream:
            try:
                byte = await stream.receive_some(1)
                if byte == HEARTBEAT:
                    await stream.send_all(byte)
                    self.note()
                else:
                    got = bytes(byte).hex() or "empty"
                    self.fail(f"the enclave's heartbeat was {got}, not {HEARTBEAT.hex()}")
            except trio.BrokenResourceError:
                self.fail("the enclave broke off its heartbeat")

    def fail(self, how: str) -> None:
        """Something came that is no heartbeat; the first few times it is told."""
        self.failures += 1
        if self.failures <= FAILURES_SAID_MAX:
            more = "; more of these are not reported" if self.failures == FAILURES_SAID_MAX else ""
            self._say(how + more)
