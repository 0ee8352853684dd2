"""The first program of an enclave, which this package carries for images without one of their own.

Its source is in ``packages/eif/init``, here and in the source distribution; a wheel has it compiled.
"""

from importlib.resources import files

from nitro_eif.errors import HostError


def guest_init() -> bytes:
    """The init for x86_64: a static ELF executable for ``/init`` of an image's first ramdisk.

    It does what AWS's init does (aws-nitro-enclaves-sdk-bootstrap, ``init/init.c``): loads ``/nsm.ko`` and
    what ``/modules.load`` lists, sends the heartbeat, then runs ``/cmd`` with ``/env`` in ``/rootfs``. It
    also obeys ``/workdir`` (a directory) and ``/user`` (``uid:gid[:gid,gid...]`` in numbers).

    Raises:
        HostError: This installation was built without a compiler, and so without the init.
    """
    program = files("nitro_eif") / "_guest" / "init-x86_64"
    try:
        return program.read_bytes()
    except FileNotFoundError as error:
        raise HostError(
            "this installation of nitro-eif has no init for enclaves, because there was no compiler",
            hint="install gcc and then nitro-eif again, or a wheel of it; or give an init with --init",
        ) from error
