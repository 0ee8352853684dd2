"""What an enclave's process can be asked, over its control socket; and how commands ask.

A request is one line of JSON, ``{"do": ...}``:

* ``stop``: ends the enclave; the connection is closed when it has ended.
* ``booted``: answered with ``true`` when the heartbeat has come, or ``false`` when the enclave has ended.
* ``stats``: answered with one line of JSON.
* ``attest``, with ``nonce``, ``user_data`` and ``public_key`` as hexadecimal where they are wanted: answered
  with ``{"document": BASE64}`` or ``{"error": TEXT, "hint": TEXT}``.
* ``follow``: answered with what the enclave prints, from the first byte that is kept, until it ends.
* ``console``: the same, and what the client sends is typed on the console.

Where the console is not shown, the last two are refused with ``{"error": TEXT}``.

Nobody but the user's own processes and root's gets as far, because the directory lets nobody else in.
"""

import base64
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from nitro_vmm.errors import HostError, UsageError
from nitro_vmm.run.registry import control_address

REQUEST_BYTES_MAX: Final = 16384
"""The longest has three values for a document, less than 4096 bytes together, as hexadecimal."""
ANSWER_BYTES_MAX: Final = 1 << 16
CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 10.0
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def ask(directory: Path, what: str, parameters: Mapping[str, str] = NOTHING) -> socket.socket:
    """Connect to an enclave's process and say what is wanted; the answer can be read.

    Args:
        directory: The enclave's.
        what: One of the requests above.
        parameters: What belongs to it.

    Raises:
        HostError: Nothing takes requests there.
    """
    control = socket.socket(socket.AF_UNIX)
    try:
        control.settimeout(CONNECT_TIMEOUT_S)
        with control_address(directory) as address:
            control.connect(address)
        control.sendall(json.dumps({"do": what, **parameters}).encode() + b"\n")
        control.settimeout(None)
    except OSError as error:
        control.close()
        raise HostError(
            f"the process of {directory.name} does not answer: {error.strerror or error}",
            hint=f"vmm terminate {directory.name} ends it",
            code="M13",
        ) from error
    return control


def stats(directory: Path) -> dict[str, Any]:
    """What an enclave uses now.

    Raises:
        HostError: Its process does not answer.
    """
    return _answer(directory, "stats")


def attest(directory: Path, contents: Mapping[str, bytes]) -> bytes:
    """An attestation document of the enclave's registers as they are now.

    Args:
        directory: The enclave's.
        contents: What the document is to say: ``nonce``, ``user_data``, ``public_key``.

    Raises:
        UsageError: Its module makes no such document.
        HostError: Its process does not answer.
    """
    answer = _answer(directory, "attest", {name: value.hex() for name, value in contents.items()})
    if "error" in answer:
        raise UsageError(answer["error"], hint=answer.get("hint", ""))
    return base64.b64decode(answer["document"])


def _answer(directory: Path, what: str, parameters: Mapping[str, str] = NOTHING) -> dict[str, Any]:
    with ask(directory, what, parameters) as control:
        control.settimeout(ANSWER_TIMEOUT_S)
        try:
            with control.makefile("rb") as answer:
                line = answer.readline(ANSWER_BYTES_MAX)
            found: dict[str, Any] = json.loads(line)
        except (OSError, ValueError) as error:
            raise HostError(f"the process of {directory.name} does not answer", code="M13") from error
    return found
