"""What this package raises on purpose, by whose fault it is."""

from pathlib import Path


class EifError(Exception):
    """Base of everything this package raises on purpose."""


class EifFormatError(EifError):
    """Bytes of a file are not what their format says; the message names the place and what to do.

    Attributes:
        reason: what is wrong, without the place.
        offset: where, in bytes from the start of the input.
        section: index in the section table, where the fault is in one section.
        path: the file, where one is known.
        code: the finding's code (see `nitro_eif.RULES`), where a rule of the EIF format is broken.
    """

    def __init__(
        self,
        reason: str,
        *,
        offset: int,
        section: int | None = None,
        path: Path | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(reason)
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


class UsageError(EifError):
    """The caller asked for what cannot be: a value out of range, options that exclude each other."""


class SigningError(EifError):
    """A key, certificate or key service cannot sign or verify; the message says which and why."""


class HostError(EifError):
    """The operating system, the network or a missing program or library is in the way."""


class RegistryError(HostError):
    """A container registry refused, answered nonsense or could not be reached."""
