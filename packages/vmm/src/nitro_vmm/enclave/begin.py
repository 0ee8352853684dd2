"""The first half of a launch: a boot, or a saved machine."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from nitro_vmm.accel import Accelerator
from nitro_vmm.enclave.boot import Begun, Surroundings, boot_cold

if TYPE_CHECKING:
    from nitro_vmm.plain_config import EnclaveSettings


def begin(
    config: "EnclaveSettings",
    accelerator: Accelerator,
    resources: ExitStack,
    around: Surroundings,
    *,
    to_save: str = "",
) -> Begun:
    """Do the first half of a launch.

    Args:
        config: What is wanted.
        accelerator: What runs it.
        resources: Gets what has to be given back when the machine has ended.
        around: Who is told.
        to_save: The kind of machine to be saved, if it is booted for that.

    Raises:
        ImageError: The image would not boot.
        EifError: It is not an image.
        UsageError: The configuration cannot be.
        HostError: The host lacks something.
        StateError: The saved machine cannot go on here.
        OSError: The image cannot be read.
    """
    if to_save or config.snapshot_path is not None or config.warm != "off":
        from nitro_vmm.enclave.resume import Resumption  # noqa: PLC0415 - most launches boot

        return Resumption(config, accelerator, resources, around, to_save).begin()
    return boot_cold(config, accelerator, resources, around)
