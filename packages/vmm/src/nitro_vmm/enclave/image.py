"""What is asked of an image file before it boots."""

import stat
from typing import TYPE_CHECKING, Final

from nitro_eif import Architecture, Eif, Measured, Measurements, measure_and_checksum, refusals
from nitro_vmm.address_map import MIB
from nitro_vmm.boot.ram import Proceed, nothing
from nitro_vmm.defaults import MEMORY_MIB_DEFAULT, MEMORY_PER_IMAGE_BYTE
from nitro_vmm.errors import ImageError, UsageError

if TYPE_CHECKING:
    from nitro_vmm.plain_config import EnclaveSettings

KINDS: Final = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def choose_memory_mib(config: "EnclaveSettings") -> int:
    """The enclave's memory, MiB.

    Raises:
        UsageError: It is less than the image needs.
        ImageError: The image is a device or a pipe, which opening might wait for.
        OSError: There is no image.
    """
    status = config.eif_path.stat()
    if kind := KINDS.get(stat.S_IFMT(status.st_mode)):
        raise ImageError(
            f"this is {kind}", section="file type", hint="give the path of a regular file, an EIF", code="M16"
        )
    image_bytes = status.st_size
    needed_mib = -(-MEMORY_PER_IMAGE_BYTE * image_bytes // MIB)
    if config.memory_mib is None:
        return max(MEMORY_MIB_DEFAULT, needed_mib)
    if config.memory_mib < needed_mib:
        raise UsageError(
            f"{config.eif_path} has {image_bytes} bytes and needs four times as much memory, "
            f"{needed_mib} MiB; it was given {config.memory_mib}",
            hint=f"--memory-mib {needed_mib}",
            code="M15",
        )
    return config.memory_mib


def measure_bootable(
    eif: Eif, proceed: Proceed = nothing, *, measured: Measured | None = None
) -> Measurements:
    """Measure an image, if Nitro would boot it.

    Args:
        eif: The image.
        proceed: See `Proceed`; called in several threads, one at a time.
        measured: What it measures, where that is known.

    Raises:
        ImageError: It would not.
    """
    if eif.architecture is not Architecture.X86_64:
        raise ImageError(
            f"the image is for {eif.architecture.value}, and this machine is an x86_64",
            section="header",
            offset=6,
            code="M17",
        )
    if measured is None:
        measured = measure_and_checksum(eif, progress=lambda _done, _total: proceed())
    # A kernel that only Nitro cannot load, such as a vmlinux, boots here.
    found = [finding for finding in refusals(eif, measured=measured) if finding.code != "kernel-format"]
    if found:
        first = found[0]
        section = "header" if first.section is None else f"section {first.section}"
        raise ImageError(
            f"Nitro would not boot it: {first.message}", section=section, offset=first.offset, code="M18"
        )
    return measured.measurements
