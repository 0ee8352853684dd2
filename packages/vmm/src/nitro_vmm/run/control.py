"""What an enclave's process can be asked, over its control socket; and how commands ask.

A request is one line of JSON, ``{"do": ...}``:

* ``stop``: ends the enclave; the connection is closed when it has ended.
* ``booted``: answered with ``true`` when the heartbeat has come, or ``false`` when the enclave has ended.
* ``stats``: answered with one line of JSON.
* ``follow``: answered with what the enclave prints, from the first byte that is kept, until it ends.
* ``console``: the same, and what the client sends is typed on the console.

Nobody but the user's own processes and root's gets as far, because the directory lets nobody else in.
"""

import json
import socket
from pathlib import Path
from typing import Any, Final

from nitro_vmm.errors import HostError
from nitro_vmm.run.registry import control_address

REQUEST_BYTES_MAX: Final = 4096
CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 10.0


def ask(directory: Path, what: str) -> socket.socket:
    """Connect to an enclave's process and say what is wanted; the answer can be read.

    Raises:
        HostError: Nothing takes requests there.
    """
    control = socket.socket(socket.AF_UNIX)
    try:
        control.settimeout(CONNECT_TIMEOUT_S)
        with control_address(directory) as address:
            control.connect(address)
        control.sendall(json.dumps({"do": what}).encode() + b"\n")
        control.settimeout(None)
    except OSError as error:
        control.close()
        raise HostError(
            f"the process of {directory.name} does not answer: {error.strerror or error}",
            hint=f"vmm terminate {directory.name} ends it",
        ) from error
    return control


def stats(directory: Path) -> dict[str, Any]:
    """What an enclave uses now.

    Raises:
        HostError: Its process does not answer.
    """
    with ask(directory, "stats") as control:
        control.settimeout(ANSWER_TIMEOUT_S)
        try:
            with control.makefile("rb") as answer:
                line = answer.readline(1 << 16)
            found: dict[str, Any] = json.loads(line)
        except (OSError, ValueError) as error:
            raise HostError(f"the process of {directory.name} does not answer") from error
    return found
