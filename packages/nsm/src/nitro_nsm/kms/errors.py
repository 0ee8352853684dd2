"""What a KMS answers when it does not do what it is asked."""

from nitro_nsm.errors import NsmError


class KmsError(NsmError):
    """A request is refused, or failed.

    Args:
        kind: AWS's name of the error, such as `AccessDeniedException`.
        message: What the client is told.
        status: The HTTP status.
        detail: What only the server's log says, because it would tell a stranger too much.
    """

    def __init__(self, kind: str, message: str, *, status: int = 400, detail: str = "") -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        """AWS's name of the error."""
        self.message = message
        """What the client is told."""
        self.status = status
        """The HTTP status."""
        self.detail = detail
        """What the server's log says besides."""


class EnvelopeError(NsmError):
    """An envelope is malformed, or not for the key that was tried."""
