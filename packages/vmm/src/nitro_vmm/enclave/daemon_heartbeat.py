"""The heartbeat where a vhost-user daemon serves vsock: the daemon answers it, and its counters tell of it.

``vhost-user-vsock --heartbeat --stats PATH`` answers the heartbeats of its guests and counts them. Whoever
connects to PATH and writes a line gets the counters as JSON. Nothing else tells this process that the enclave
has booted, because the daemon moves the packets.
"""

import json
import socket
from pathlib import Path
from typing import Any, Final

import trio

from nitro_vmm.enclave.heartbeat import Heartbeat
from nitro_vmm.errors import HostError

POLL_S: Final = 0.05
"""How often to ask. A boot takes a second, and an answer less than a millisecond."""
ANSWER_TIMEOUT_S: Final = 5.0
ANSWER_BYTES_MAX: Final = 1 << 22
"""A report of a thousand guests has less than one MiB."""

UNSEEN: Final = (
    "the enclave's heartbeat goes to the daemon, and nothing here sees it: there is no boot time-out, and "
    "nobody is told that it has booted; give the daemon --heartbeat --stats PATH, and vmm --vsock-stats PATH"
)
"""What is said at once where no path was given."""


class DaemonHeartbeat:
    """Asks a daemon for its guest's heartbeats; blocks while it does, five seconds at most.

    Args:
        path: What the daemon got as ``--stats``.
        guest_cid: Which guest.

    Raises:
        HostError: Nobody tells counters there, or the daemon does not answer this guest's heartbeats.
    """

    def __init__(self, path: Path, guest_cid: int) -> None:
        self._path = path
        self._guest_cid = guest_cid
        self._seen = self._ask()

    async def watch(self, heartbeat: Heartbeat) -> None:
        """Ask until the enclave has booted. A daemon that is away meanwhile is asked again."""
        while not heartbeat.came.is_set():
            await trio.sleep(POLL_S)
            await self.look(heartbeat)

    async def look(self, heartbeat: Heartbeat) -> None:
        """Ask once."""
        try:
            answered, wrong = await trio.to_thread.run_sync(self._ask, abandon_on_cancel=True)
        except HostError:
            return
        before_answered, before_wrong = self._seen
        self._seen = answered, wrong
        if wrong > before_wrong:
            heartbeat.fail("the daemon got something from the enclave that is no heartbeat")
        # A daemon that was started again counts from 0.
        if answered > (before_answered if answered >= before_answered else 0):
            heartbeat.note()

    def _ask(self) -> tuple[int, int]:
        """How many heartbeats of the guest were answered so far, and how many were wrong."""
        report = _counters(self._path)
        try:
            services = {vm["guest_cid"]: vm["services"] for vm in report["vms"]}
            if self._guest_cid not in services:
                raise HostError(
                    f"the daemon with counters at {self._path} has no guest with CID {self._guest_cid}",
                    hint="give --vsock and --vsock-stats of the same daemon",
                    code="M26",
                )
            found = services[self._guest_cid].get("heartbeat")
            if found is None:
                raise HostError(
                    f"the daemon does not answer the heartbeat of its guest {self._guest_cid}",
                    hint="start it with --heartbeat, or heartbeat=true in its --vm",
                    code="M26",
                )
            return int(found["answered"]), int(found["wrong"])
        except (LookupError, TypeError, ValueError, AttributeError):
            raise _not_counters(self._path, "it sends something else") from None


def _counters(path: Path) -> dict[str, Any]:
    content = b""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(b"json\n")
            while len(content) < ANSWER_BYTES_MAX and (piece := connection.recv(1 << 16)):
                content += piece
        found = json.loads(content)
    except OSError as error:
        raise _not_counters(path, error.strerror or str(error)) from error
    except (ValueError, RecursionError):
        raise _not_counters(path, "it sends something else") from None
    if not isinstance(found, dict):
        raise _not_counters(path, "it sends something else")
    return found


def _not_counters(path: Path, why: str) -> HostError:
    return HostError(
        f"no daemon tells its counters at {path}: {why}",
        hint="start it with --stats PATH, and give that path",
        code="M26",
    )
