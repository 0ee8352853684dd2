"""What can go wrong, by who is to blame."""


class VmmError(Exception):
    """Base of everything this package raises on purpose.

    Attributes:
        hint: What to do; empty where the message says all.
        code: A letter and two digits that ``vmm explain`` explains: the class's, or a narrower one.
    """

    code: str = "M00"

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if code:
            self.code = code


class ImageError(VmmError):
    """The image's bytes are at fault, or do not fit the machine they are to boot in.

    Attributes:
        section: Which part of the image: ``kernel``, ``command line`` or ``ramdisk 1`` and so on.
        offset: The byte within that part, where one can be named. For a compressed kernel's contents
            it counts in the decompressed bytes, and the message says so.
    """

    code = "M02"

    def __init__(
        self, message: str, *, section: str, offset: int | None = None, hint: str = "", code: str = ""
    ) -> None:
        place = section if offset is None else f"{section}, byte {offset:#x}"
        super().__init__(f"{message} ({place})", hint=hint, code=code)
        self.section = section
        self.offset = offset


class HostError(VmmError):
    """The operating system, a library or a file of the host is in the way."""

    code = "M03"


class UsageError(VmmError):
    """The caller asked for what cannot be."""

    code = "M01"


class GuestError(VmmError):
    """The guest does not do what is needed of it, through no fault of the image's."""

    code = "M35"


class StateError(VmmError):
    """The state of a saved machine cannot be restored: it is of another machine, or is damaged."""

    code = "M04"

    def __init__(
        self, message: str, *, hint: str = "start without it, and save a new one with this version"
    ) -> None:
        super().__init__(message, hint=hint)


class LaunchStoppedError(VmmError):
    """The enclave was told to end before its guest ran.

    Attributes:
        signal: The number of the signal that ended it, if one did.
    """

    code = "M37"

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} before the guest ran")
        self.signal: int | None = None
