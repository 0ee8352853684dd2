"""What can go wrong with an enclave, as messages and exit codes."""

import errno
from pathlib import Path
from typing import Final

from nitro_vmm.cli.command import complain
from nitro_vmm.cli.exit_code import ExitCode

LIMITS: Final = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the whole system has too many open files",
    errno.ENOMEM: "give the enclave less memory (--memory-mib), or raise the limit (ulimit -v)",
    errno.ENOSPC: "the disk is full",
}
"""What to do about errors that are not about the file that they name."""


def complain_of(error: Exception, path: Path | None = None, *, daemon: bool = False) -> int:
    """Say what went wrong, as far as it is known how such a thing can go wrong; returns the exit code.

    Args:
        error: What was raised; raised again if it is not known.
        path: The image.
        daemon: Whether a vhost-user daemon serves vsock.
    """
    from nitro_eif import EifError  # noqa: PLC0415 - needed now
    from nitro_nsm import NsmError  # noqa: PLC0415
    from nitro_vmm.errors import HostError, ImageError, UsageError  # noqa: PLC0415
    from nitro_vsock import VsockError  # noqa: PLC0415

    match error:
        case UsageError():
            return complain(error, hint=error.hint, code=ExitCode.USAGE)
        case ImageError():
            hint = f"eif describe --findings {path} explains the file; if it was copied, copy it again"
            return complain(f"{path}: {error}", hint=error.hint or hint, code=ExitCode.IMAGE)
        case EifError() if isinstance(error.__cause__, OSError):
            code = ExitCode.HOST if error.__cause__.errno in LIMITS else ExitCode.IMAGE
            return complain(error, hint=_hint(error.__cause__) or "give the path of an EIF", code=code)
        case EifError():
            return complain(error, hint=f"was {path} copied whole? eif describe {path}", code=ExitCode.IMAGE)
        case HostError():
            return complain(error, hint=error.hint, code=ExitCode.HOST)
        case VsockError():
            hint = "start the daemon first" if daemon else "give another --vsock-path"
            return complain(error, hint=hint, code=ExitCode.HOST)
        case NsmError():
            return complain(error, hint=getattr(error, "hint", ""), code=ExitCode.HOST)
        case OSError() if path is not None and error.filename is not None and Path(error.filename) == path:
            hint = "give the path of an EIF"
            return complain(f"{path}: {error.strerror}", hint=hint, code=ExitCode.IMAGE)
        case OSError():
            return complain(error, hint=_hint(error), code=ExitCode.HOST)
    raise error


def _hint(error: OSError) -> str:
    return LIMITS.get(error.errno or 0, "")
