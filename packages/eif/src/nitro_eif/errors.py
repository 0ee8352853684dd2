"""What this package raises on purpose, by whose fault it is."""

from enum import StrEnum
from pathlib import Path


class EifError(Exception):
    """Base of everything this package raises on purpose.

    Args:
        message: What is wrong, and where.
        hint: What to do about it; empty where there is no remedy.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class EifFormatError(EifError):
    """The bytes of a file are not what their format says; the message names the place.

    Args:
        reason: What is wrong, without the place.
        offset: Where, in bytes from the start of the input; 0 where the input as a whole is meant.
        section: Index in the section table, where the fault is in one section.
        path: The file, where one is known.
        code: The finding's code (see `nitro_eif.RULES`), where a rule of the EIF format is broken.
        hint: What to do about it; empty where there is no remedy.
    """

    def __init__(
        self,
        reason: str,
        *,
        offset: int = 0,
        section: int | None = None,
        path: Path | None = None,
        code: str | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(reason, hint=hint)
        self.reason = reason
        self.offset = offset
        self.section = section
        self.path = path
        self.code = code

    def __str__(self) -> str:
        place = (
            f"byte {self.offset:#x}"
            if self.section is None
            else f"section {self.section}, byte {self.offset:#x}"
        )
        text = f"{self.reason} ({place})"
        return text if self.path is None else f"{self.path}: {text}"

    def at(self, path: Path) -> "EifFormatError":
        """The same error, of an input that is called ``path``."""
        return EifFormatError(
            self.reason,
            offset=self.offset,
            section=self.section,
            path=path,
            code=self.code,
            hint=self.hint,
        )


class UsageError(EifError):
    """The caller asked for what cannot be: a value out of range, options that exclude each other."""


class SigningProblem(StrEnum):
    """Kinds of `SigningError`."""

    KEY = "key"
    """A private key, certificate or key service cannot be used."""
    MALFORMED = "malformed"
    """The bytes are not a certificate or a COSE_Sign1 message."""
    INVALID = "invalid"
    """The signature was not made by the certificate's key."""
    OTHER_IMAGE = "other-image"
    """The signature is good, and of another image."""


class SigningError(EifError):
    """A key, certificate or key service cannot sign or verify; the message says which and why.

    Args:
        message: What is wrong.
        problem: Which kind of problem it is.
        hint: What to do about it; empty where there is no remedy.
    """

    def __init__(self, message: str, *, problem: SigningProblem = SigningProblem.KEY, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.problem = problem


class HostError(EifError):
    """The operating system, the network or a missing program or library is in the way."""


class RegistryError(HostError):
    """A container registry refused, answered nonsense or could not be reached."""
