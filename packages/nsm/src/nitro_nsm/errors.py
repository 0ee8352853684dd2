"""What this package raises on purpose: all of it is an `NsmError`, and each class says who is to blame."""

from enum import StrEnum


class NsmError(Exception):
    """Base of everything that this package raises on purpose."""


class ErrorCode(StrEnum):
    """The module's errors, under the names that it sends (aws-nitro-enclaves-nsm-api, `ErrorCode`)."""

    SUCCESS = "Success"
    INVALID_ARGUMENT = "InvalidArgument"
    INVALID_INDEX = "InvalidIndex"
    INVALID_RESPONSE = "InvalidResponse"
    READ_ONLY_INDEX = "ReadOnlyIndex"
    INVALID_OPERATION = "InvalidOperation"
    BUFFER_TOO_SMALL = "BufferTooSmall"
    INPUT_TOO_LARGE = "InputTooLarge"
    INTERNAL_ERROR = "InternalError"


class Refusal(NsmError):  # noqa: N818 - the module refused; nothing of ours went wrong
    """The module answered a request with an error code.

    The device raises it to itself and sends `code`; `NsmClient` raises it when it reads such a reply.
    """

    def __init__(self, code: ErrorCode, why: str = "") -> None:
        super().__init__(f"{code}: {why}" if why else str(code))
        self.code = code


class CborError(NsmError):
    """The bytes are not the CBOR that is allowed at this place."""

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(f"{message} (byte {offset:#x})")
        self.offset = offset
        """Where in the bytes the trouble starts."""


class Step(StrEnum):
    """The steps of verifying a document, in their order."""

    STRUCTURE = "structure"
    ALGORITHM = "algorithm"
    CERTIFICATES = "certificates"
    SIGNATURE = "signature"
    PCRS = "pcrs"
    NONCE = "nonce"
    USER_DATA = "user_data"
    PUBLIC_KEY = "public_key"
    AGE = "age"


class DocumentError(NsmError):
    """A document is not what it should be; `step` says which check it failed."""

    def __init__(self, step: Step, message: str) -> None:
        super().__init__(f"{step}: {message}")
        self.step = step


class UsageError(NsmError):
    """Our caller asked for something that cannot be: a bad value, or two that exclude each other."""


class InputError(NsmError):
    """A file that was given is missing, unreadable or not what it should be."""


class HostError(NsmError):
    """The operating system refused: a directory, a socket or the device (raised from the `OSError`)."""
