"""The other side: asking a module, over whatever takes a request and gives the reply.

`NsmClient` builds requests and reads replies; a transport carries them. `NsmClient(nsm.handle)` asks a module
in the same process, `SocketTransport` one behind `nsm serve`, and `DeviceTransport` the `/dev/nsm` of a real
enclave (or of an emulated one).
"""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import cbor2

from nitro_nsm.errors import ErrorCode, HostError, Refusal
from nitro_nsm.ioctl import NSM_IOCTL, NSM_RAW
from nitro_nsm.module import REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX

Transport = Callable[[bytes], bytes]
"""Takes a request and returns the reply."""

FRAME_HEAD = struct.Struct(">I")
"""On a socket, requests and replies have their length in bytes before them."""

ERROR_CODES = frozenset(ErrorCode)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModuleDescription:
    """What a module says of itself."""

    module_id: str
    """The instance and the enclave: `i-…-enc…`."""
    version: tuple[int, int, int]
    """Major, minor, patch."""
    digest: str
    """The hash of the registers, SHA384."""
    max_pcrs: int
    """How many registers there are."""
    locked_pcrs: tuple[int, ...]
    """The indexes of those that can no longer change."""


@dataclass(frozen=True, slots=True)
class PcrDescription:
    """A register."""

    value: bytes
    """48 bytes."""
    locked: bool
    """Whether it can no longer change."""


class NsmClient:
    """Asks a module.

    Every method raises `Refusal` when the module refuses, and with InvalidResponse when its reply cannot be
    understood. What the transport raises passes through.

    Args:
        transport: Carries a request to the module and returns the reply.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def describe_nsm(self) -> ModuleDescription:
        """Who the module is."""
        reply = self._ask("DescribeNSM")
        return ModuleDescription(
            module_id=_field(reply, "module_id", str),
            version=(
                _field(reply, "version_major", int),
                _field(reply, "version_minor", int),
                _field(reply, "version_patch", int),
            ),
            digest=_field(reply, "digest", str),
            max_pcrs=_field(reply, "max_pcrs", int),
            locked_pcrs=tuple(_field(reply, "locked_pcrs", list)),
        )

    def describe_pcr(self, index: int) -> PcrDescription:
        """The value of a register, and whether it can still change."""
        reply = self._ask("DescribePCR", {"index": index})
        return PcrDescription(_field(reply, "data", bytes), _field(reply, "lock", bool))

    def extend_pcr(self, index: int, data: bytes) -> bytes:
        """Extend a register by `data`; returns its new value."""
        return _field(self._ask("ExtendPCR", {"index": index, "data": data}), "data", bytes)

    def lock_pcr(self, index: int) -> None:
        """Let a register change no more."""
        self._ask("LockPCR", {"index": index})

    def lock_pcrs(self, count: int) -> None:
        """Let the first `count` registers change no more."""
        self._ask("LockPCRs", {"range": count})

    def attest(
        self, *, user_data: bytes | None = None, nonce: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """A signed attestation document."""
        reply = self._ask("Attestation", {"user_data": user_data, "nonce": nonce, "public_key": public_key})
        return _field(reply, "document", bytes)

    def get_random(self) -> bytes:
        """Random bytes, up to 256."""
        return _field(self._ask("GetRandom"), "random", bytes)

    def _ask(self, name: str, parameters: dict[str, object] | None = None) -> object:
        request = cbor2.dumps(name if parameters is None else {name: parameters})
        if len(request) > REQUEST_BYTES_MAX:
            raise Refusal(ErrorCode.INPUT_TOO_LARGE, f"{len(request)} bytes of {REQUEST_BYTES_MAX}")
        try:
            reply: object = cbor2.loads(self._transport(request))
        except cbor2.CBORDecodeError as error:
            raise Refusal(ErrorCode.INVALID_RESPONSE, f"the reply to {name} is not CBOR") from error
        match reply:
            case {"Error": str(code)} if code in ERROR_CODES:
                raise Refusal(ErrorCode(code), f"the module refused {name}")
            case dict() if name in reply:
                found: object = reply[name]
                return found
            case str() if reply == name:
                return None
        raise Refusal(ErrorCode.INVALID_RESPONSE, f"{reply!r} is not a reply to {name}")


class SocketTransport:
    """A connection to `nsm serve`.

    Args:
        path: The server's socket.

    Raises:
        HostError: Nobody listens there.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise HostError(
                f"{path}: {error.strerror or error}", hint="is `nsm serve` running there?"
            ) from error
        self._replies = self._socket.makefile("rb")

    def __call__(self, request: bytes) -> bytes:
        """Carry one request.

        Raises:
            HostError: The connection is lost.
        """
        try:
            self._socket.sendall(FRAME_HEAD.pack(len(request)) + request)
            return self._take(FRAME_HEAD.unpack(self._take(FRAME_HEAD.size))[0])
        except OSError as error:
            raise HostError(f"the connection to the module is lost: {error}") from error

    def close(self) -> None:
        """Disconnect."""
        self._replies.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, count: int) -> bytes:
        taken = self._replies.read(min(count, RESPONSE_BYTES_MAX))
        if len(taken) != count:
            raise ConnectionError("it ended in the middle of a reply")
        return taken


class DeviceTransport:
    """The device of an enclave's kernel.

    Args:
        path: The device.

    Raises:
        HostError: It is not there, or may not be opened.
    """

    def __init__(self, path: Path = Path("/dev/nsm")) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(
                f"{path}: {error.strerror}", hint="only an enclave has this device; elsewhere use `nsm serve`"
            ) from error

    def __call__(self, request: bytes) -> bytes:
        """Carry one request.

        Raises:
            HostError: The device does not answer.
        """
        buffer = ctypes.create_string_buffer(request, len(request))
        room = ctypes.create_string_buffer(RESPONSE_BYTES_MAX)
        message = bytearray(
            NSM_RAW.pack(ctypes.addressof(buffer), len(request), ctypes.addressof(room), len(room))
        )
        try:
            fcntl.ioctl(self._descriptor, NSM_IOCTL, message)
        except OSError as error:
            raise HostError(f"the module does not answer: {error.strerror}") from error
        *_, length = NSM_RAW.unpack(message)
        return room.raw[:length]

    def close(self) -> None:
        """Close the device."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _field(reply: object, name: str, kind: type[T]) -> T:
    value = reply.get(name) if isinstance(reply, dict) else None
    if not isinstance(value, kind):
        raise Refusal(ErrorCode.INVALID_RESPONSE, f"the reply has no {name}")
    return value
