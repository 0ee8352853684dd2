"""The first program of an enclave, which this package carries for images without one of their own.

Its source is in ``packages/eif/init``, here and in the source distribution; a wheel has it compiled.
"""

from importlib.resources import files

from nitro_eif.architecture import Architecture
from nitro_eif.errors import HostError


def guest_init(architecture: Architecture = Architecture.X86_64) -> bytes:
    """The init: a static ELF executable for ``/init`` of an image's first ramdisk.

    It does what AWS's init does (aws-nitro-enclaves-sdk-bootstrap, ``init/init.c``): loads ``/nsm.ko`` and
    what ``/modules.load`` lists, sends the heartbeat, then runs ``/cmd`` with ``/env`` in ``/rootfs``. It
    also obeys ``/workdir`` (a directory) and ``/user`` (``uid:gid[:gid,gid...]`` in numbers), and prefers
    ``/cmd0`` and ``/env0``, in which a NUL ends each entry rather than a newline.

    Args:
        architecture: The processor that it is for.

    Raises:
        HostError: This installation was built without a compiler for that processor, and so without the init.
    """
    program = files("nitro_eif") / "_guest" / f"init-{architecture}"
    try:
        return program.read_bytes()
    except FileNotFoundError as error:
        compiler = "gcc" if architecture is Architecture.X86_64 else "gcc-aarch64-linux-gnu"
        raise HostError(
            f"this installation has no init for {architecture} enclaves, because there was no compiler",
            hint=f"install {compiler} and then nitro-eif again, or a wheel of it; or use --init",
        ) from error
