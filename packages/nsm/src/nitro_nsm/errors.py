"""What this package raises on purpose: all of it is an `NsmError`, and each class says who is to blame."""

from enum import StrEnum


class NsmError(Exception):
    """Base of everything that this package raises on purpose.

    Args:
        message: What is wrong, and where.
        hint: What to do about it, if there is something; empty otherwise.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        """What to do about it; empty if nothing is known to help."""


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

    The device raises it internally and sends `code`; `NsmClient` raises it when it reads such a reply.
    """

    def __init__(self, code: ErrorCode, why: str = "", *, hint: str = "") -> None:
        super().__init__(f"{code}: {why}" if why else str(code), hint=hint)
        self.code = code
        """The error that the module sends."""


class CborError(NsmError):
    """The bytes are not the CBOR that is allowed at this place."""

    def __init__(self, message: str, *, offset: int, hint: str = "") -> None:
        super().__init__(f"{message} (byte {offset:#x})", hint=hint)
        self.offset = offset
        """The first byte that is wrong, counted from the start of the item."""


class Step(StrEnum):
    """The steps of verifying a document, in their order."""

    STRUCTURE = "structure"
    ALGORITHM = "algorithm"
    CERTIFICATES = "certificates"
    SIGNATURE = "signature"
    TIMESTAMP = "timestamp"
    DEBUG_MODE = "debug_mode"
    PCRS = "pcrs"
    SIGNER = "signer"
    AGE = "age"
    NONCE = "nonce"
    USER_DATA = "user_data"
    PUBLIC_KEY = "public_key"


class DocumentError(NsmError):
    """A document failed verification."""

    def __init__(self, step: Step, message: str, *, hint: str = "") -> None:
        super().__init__(f"{step}: {message}", hint=hint)
        self.step = step
        """The first check that it failed."""


class UsageError(NsmError):
    """The caller asked for something impossible: a bad value, or two that exclude each other."""


class InputError(NsmError):
    """A file that was given is missing, unreadable or not what it should be."""


class HostError(NsmError):
    """The operating system refused: a directory, a socket or the device. Raised from the `OSError`."""
