"""Enclaves that go on from a saved machine: which one fits, and where it is found."""

import hashlib
import stat
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nitro_eif import Eif, Measurements
from nitro_vmm.accel import Accelerator, SavesMachines
from nitro_vmm.address_map import COMMAND_LINE_BYTES_MAX, MIB, virtio_slot
from nitro_vmm.boot import canonical, command_line
from nitro_vmm.boot.ram import Proceed, nothing
from nitro_vmm.cache import Cache
from nitro_vmm.enclave.boot import appended
from nitro_vmm.errors import HostError, StateError, UsageError, VmmError
from nitro_vmm.snapshot.code import code_digest
from nitro_vmm.snapshot.codec import encode
from nitro_vmm.snapshot.layout import Description, Parameters, difference
from nitro_vmm.snapshot.store import Saved, read

if TYPE_CHECKING:
    from typing import BinaryIO

    from nitro_vmm.plain_config import EnclaveSettings
    from nitro_vmm.snapshot.digest import FileDigest

IMAGE: Final = "image"
"""The kind of a machine that was saved before the first instruction of its image's first program."""
KERNEL: Final = "kernel"
"""The kind of one that was saved before its kernel unpacks the ramdisks, and serves every image with it."""
KINDS: Final = {"off": (), KERNEL: (KERNEL,), IMAGE: (IMAGE, KERNEL)}
"""What is looked for with each value of `EnclaveConfig.warm`, the best first."""


def saving(accelerator: Accelerator) -> SavesMachines:
    """An accelerator that can save machines.

    Raises:
        HostError: This one cannot.
    """
    if not isinstance(accelerator, SavesMachines):
        raise HostError(
            f"the accelerator {accelerator.name} does not save machines here",
            hint="use --accel kvm, or --accel unicorn with its native part",
        )
    return accelerator


def parameters_of(
    kind: str,
    config: "EnclaveSettings",
    accelerator: SavesMachines,
    eif: Eif,
    measurements: Measurements,
    *,
    memory_mib: int,
    processors: int,
) -> Parameters | None:
    """Which machine of a kind an enclave would have; `None` if its kernel reads its ramdisks too early."""
    if kind == KERNEL and canonical.is_read_early(eif.ramdisks):
        return None
    devices = ("nsm", "vsock+seqpacket" if config.seqpacket else "vsock")
    added = appended(config)
    added += [command_line.virtio_mmio(virtio_slot(index)) for index in range(len(devices))]
    # The registers are digests of kernel, command line and ramdisks, one behind the other; the lengths say
    # where each begins.
    lengths = [len(eif.kernel), len(eif.cmdline), *map(len, eif.ramdisks)]
    registers = measurements.pcr0 + measurements.pcr1 + measurements.pcr2
    return Parameters(
        kind=kind,
        code=code_digest(),
        accelerator=accelerator.name,
        processor=accelerator.processor,
        memory_bytes=memory_mib * MIB,
        processors=processors,
        devices=devices,
        kernel=hashlib.sha256(eif.kernel).digest(),
        command_line=command_line.compose(bytes(eif.cmdline), added, bytes_max=COMMAND_LINE_BYTES_MAX),
        image=hashlib.sha256(f"{lengths}\n".encode() + registers).digest() if kind == IMAGE else b"",
        ramdisk_bytes=canonical.room_for(eif.ramdisks) if kind == KERNEL else 0,
    )


def entry_name(parameters: Parameters) -> str:
    """What the cache calls such a machine."""
    return f"{parameters.kind}-{hashlib.sha256(encode(parameters)).hexdigest()[:32]}"


def refusal_name(parameters: Parameters) -> str:
    """What the cache calls the note that such a machine cannot be saved."""
    return entry_name(parameters).replace(parameters.kind, "refused", 1)


def find(
    parameters: Parameters,
    accelerator: SavesMachines,
    resources: ExitStack,
    proceed: Proceed = nothing,
) -> Saved | None:
    """The saved machine of the cache, if there is one that is whole; one that is not is removed."""
    cache, name = Cache(), entry_name(parameters)
    file = cache.open(name)
    if file is None:
        return None
    resources.callback(file.close)
    try:
        saved = read(file, accelerator.name, accelerator.vm_state, proceed)
    except (StateError, OSError):
        forget(parameters)
        return None
    return saved if saved.description.parameters == parameters else None


def forget(parameters: Parameters) -> None:
    """Remove a saved machine that is of no use from the cache."""
    with suppress(VmmError):  # gone already, or a disk that can only be read
        Cache().remove(entry_name(parameters))


def open_given(
    path: Path,
    accelerator: Accelerator,
    resources: ExitStack,
    proceed: Proceed = nothing,
    *,
    ahead: "tuple[BinaryIO, FileDigest] | None" = None,
) -> Saved:
    """The saved machine in a file that the user names.

    Args:
        path: Where it is.
        accelerator: What runs it.
        resources: Gets what has to be given back when it does not run any more.
        proceed: See `Proceed`.
        ahead: The file, where it was opened before, and its digest.

    Raises:
        UsageError: There is no such file.
        HostError: The accelerator cannot go on from one.
        StateError: It is not whole, or of another version or host.
    """
    opened = saving(accelerator)
    try:
        if ahead is None and not stat.S_ISREG(path.stat().st_mode):  # to open a pipe might take for ever
            raise StateError(f"{path} is no saved machine, but a directory, a device or a pipe")
        file, digest = (path.open("rb"), None) if ahead is None else ahead
        resources.callback(file.close)
        saved = read(file, opened.name, opened.vm_state, proceed, digest=digest)
        if digest is not None:
            digest.close()  # which maps all of the file
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="vmm snapshot makes one") from error
    found = saved.description.parameters
    here = found._replace(code=code_digest(), accelerator=opened.name, processor=opened.processor)
    if found != here:
        raise StateError(f"{path} cannot go on here: {difference(found, here)}")
    return saved


def check_fits(saved: Saved, wanted: Parameters | None) -> None:
    """See that a saved machine is the one that an image would have.

    Raises:
        UsageError: It is not.
    """
    if wanted is None:
        raise UsageError(
            f"{saved.file.name} does not fit: the kernel reads this image's ramdisks before it unpacks them",
            hint="boot the image, or save its own machine",
        )
    if unlike := difference(saved.description.parameters, wanted):
        raise UsageError(
            f"{saved.file.name} does not fit: {unlike}",
            hint="give the image and options that it was made with, or none",
        )


def measurements_of(description: Description) -> Measurements:
    """The image's registers, as they were measured when the machine was saved."""
    pcr0, pcr1, pcr2, *pcr8 = description.measurements
    return Measurements(pcr0=pcr0, pcr1=pcr1, pcr2=pcr2, pcr8=pcr8[0] if pcr8 else None)
