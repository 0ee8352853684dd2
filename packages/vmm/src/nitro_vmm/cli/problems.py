"""What can go wrong with an enclave, as messages and exit codes."""

import errno
from pathlib import Path
from typing import Final

from nitro_vmm.cli import codes
from nitro_vmm.cli.command import complain, say
from nitro_vmm.cli.exit_code import ExitCode

HINTS: Final = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the whole system has too many open files",
    errno.ENOMEM: "give the enclave less memory (--memory-mib), or raise the limit (ulimit -v)",
    errno.ENOSPC: "the disk is full",
}
"""What to do about errors that are not about the file that they name."""

NO_ROOM: Final = ("can't start new thread", "Failed to load the Unicorn dynamic library")
"""How errors of Python and of Unicorn begin that have no class of their own, where a limit is too small."""


def complain_of(error: Exception, path: Path | None = None, *, daemon: bool = False) -> int:
    """Say what went wrong, as far as it is known how such a thing can go wrong; returns the exit code.

    Args:
        error: What was raised; raised again if it is not known.
        path: The image.
        daemon: Whether a vhost-user daemon serves vsock.
    """
    from nitro_eif import EifError  # noqa: PLC0415 - needed now
    from nitro_nsm import NsmError  # noqa: PLC0415
    from nitro_vmm.errors import (  # noqa: PLC0415
        HostError,
        ImageError,
        LaunchStoppedError,
        UsageError,
    )
    from nitro_vsock import VsockError  # noqa: PLC0415

    name = codes.code_of(error)
    match error:
        case LaunchStoppedError():
            say(str(error), code=name)
            return ExitCode.TERMINATED if error.signal is None else 128 + error.signal
        case UsageError():
            return complain(error, hint=error.hint, code=ExitCode.USAGE, name=name)
        case ImageError():
            hint = f"eif describe --findings {path} explains the file; if it was copied, copy it again"
            return complain(f"{path}: {error}", hint=error.hint or hint, code=ExitCode.IMAGE, name=name)
        case EifError() if isinstance(error.__cause__, OSError):
            number = error.__cause__.errno or 0
            code = ExitCode.HOST if number in HINTS else ExitCode.IMAGE
            hint = HINTS.get(number, "give the path of an EIF")
            return complain(error, hint=hint, code=code, name=codes.LIMITS.get(number, codes.NO_IMAGE))
        case EifError():
            hint = f"was {path} copied whole? eif describe {path}"
            return complain(error, hint=hint, code=ExitCode.IMAGE, name=name)
        case HostError():
            return complain(error, hint=error.hint, code=ExitCode.HOST, name=name)
        case VsockError():
            hint = "start the daemon first" if daemon else "give another --vsock-path"
            return complain(error, hint=error.hint or hint, code=ExitCode.HOST, name=name)
        case NsmError():
            return complain(error, hint=error.hint, code=ExitCode.HOST, name=name)
        case OSError() if path is not None and error.filename is not None and Path(error.filename) == path:
            hint = "give the path of an EIF"
            return complain(f"{path}: {error.strerror}", hint=hint, code=ExitCode.IMAGE, name=codes.NO_IMAGE)
        case OSError():
            number = error.errno or 0
            name = codes.LIMITS.get(number, codes.OTHER)
            return complain(error, hint=HINTS.get(number, ""), code=ExitCode.HOST, name=name)
        case _ if isinstance(error, MemoryError) or str(error).startswith(NO_ROOM):
            hint, name = HINTS[errno.ENOMEM], codes.LIMITS.get(errno.ENOMEM, codes.OTHER)
            text = f"this process may not have as much memory or as many threads as it needs: {error}"
            return complain(text.removesuffix(": "), hint=hint, code=ExitCode.HOST, name=name)
    raise error
