"""`/dev/nsm` for programs without an enclave: a library for `LD_PRELOAD`, compiled on first use.

The library is a page of C (`device.c`), which comes as source and not compiled, because it becomes part of
other programs: it must fit their C library and processor, whatever those are. Compiling takes a tenth of a
second and needs a C compiler, once; the result is kept in the user's cache directory.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from nitro_nsm.errors import HostError

SOCKET_VARIABLE = "NITRO_NSM_SOCKET"
"""The environment variable with the path of the socket of `nsm serve`."""
FLAGS = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra")


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/nitro-nsm`, by default `~/.cache/nitro-nsm` (XDG Base Directory Specification).

    Raises:
        HostError: The user has no home directory.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "nitro-nsm"
    try:
        return Path.home() / ".cache" / "nitro-nsm"
    except RuntimeError as error:
        raise HostError(
            "there is no home directory for the compiled library", hint="set XDG_CACHE_HOME to a directory"
        ) from error


def preload_library(directory: Path | None = None) -> Path:
    """The library to name in `LD_PRELOAD`, which is compiled now if that was not done yet.

    Args:
        directory: Where it is kept; by default `cache_directory`.

    Raises:
        HostError: There is no compiler, or the file cannot be made.
    """
    source = resources.files(__name__).joinpath("device.c").read_bytes()
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    name = hashlib.sha256(b"\0".join([source, (compiler or "").encode()])).hexdigest()[:16]
    path = (directory or cache_directory()) / f"nsm-{name}.so"
    if path.exists():
        return path
    if compiler is None:
        raise HostError(
            "the library needs a C compiler, and there is none", hint="install gcc, or name another by CC"
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            new = Path(scratch, "nsm.so")
            command = [*compiler.split(), *FLAGS, "-x", "c", "-", "-o", str(new), "-ldl"]
            done = subprocess.run(command, input=source, capture_output=True, check=False)
            if done.returncode != 0:
                said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
                raise HostError(
                    f"{compiler} cannot compile the library: {''.join(said)}", hint="is libc's -dev there?"
                )
            new.replace(path)  # in one step, so that nobody loads half a library
    except OSError as error:
        raise HostError(f"the library cannot be made: {error}") from error
    return path
