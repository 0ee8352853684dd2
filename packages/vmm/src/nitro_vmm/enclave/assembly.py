"""Puts an enclave together: image, memory, security module, vsock, machine, and the kernel in it."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Protocol

from nitro_eif import Eif, Measurements
from nitro_nsm import Nsm
from nitro_vmm.accel import Accelerator, EntryState
from nitro_vmm.address_map import MIB
from nitro_vmm.boot.loader import load
from nitro_vmm.cache import Cache
from nitro_vmm.config import EnclaveConfig
from nitro_vmm.devices.nsm import NsmDevice
from nitro_vmm.devices.vhost_user_vsock import VhostUserVsockDevice
from nitro_vmm.devices.virtio_mmio import VirtioDevice
from nitro_vmm.devices.vsock import VsockDevice
from nitro_vmm.enclave.image import choose_memory_mib, measure_bootable
from nitro_vmm.enclave.kernel_cache import KernelCache
from nitro_vmm.enclave.security import security_module
from nitro_vmm.machine.machine import Machine
from nitro_vmm.machine.memory import Memory
from nitro_vsock import HostSide, Service, VsockConfig, VsockEngine
from nitro_vsock.vhost_user import SharedRegion

RNG_SEED_BYTES: Final = 64
PARENT_CID: Final = 3
ELF_MAGIC: Final = b"\x7fELF"


class VsockBackEnd(VirtioDevice, Protocol):
    """What serves the vsock device, from the side of the main loop."""

    def fileno(self) -> int:
        """Readable when `turn` has something to do."""
        ...

    def turn(self) -> float | None:
        """Do it; returns in how many seconds to call again at the latest."""
        ...

    def close(self) -> None:
        """Give back all descriptors."""
        ...


@dataclass(frozen=True, slots=True)
class Assembly:
    """An enclave that is ready to run."""

    machine: Machine
    """With all its devices."""
    entry: EntryState
    """Where its kernel begins."""
    vsock: VsockBackEnd
    """What the main loop has to turn."""
    engine: VsockEngine | None
    """The vsock device of this process; `None` when a daemon serves it."""
    measurements: Measurements
    """Of the image."""
    nsm: Nsm
    """The security module; it is used under the machine's lock only."""
    module_id: str
    """The security module's."""
    memory_mib: int
    """How much memory there is."""
    processors: int
    """How many there are."""


def assemble(
    config: EnclaveConfig,
    accelerator: Accelerator,
    resources: ExitStack,
    *,
    console: Callable[[bytes], None],
    console_ready: Callable[[], None],
    host_side: HostSide,
    services: dict[int, Service],
    say: Callable[[str], None],
    notes: Sequence[str] = (),
) -> Assembly:
    """Make an enclave. Takes long enough to be called in a thread.

    Args:
        config: What is wanted.
        accelerator: What runs it.
        resources: Gets what has to be given back when the enclave has ended.
        console: See `Machine`.
        console_ready: See `Machine`.
        host_side: Where the enclave's connections go.
        services: Servers on ports that ``host_side`` does not know.
        say: Told what happens, for people.
        notes: More to say once the image is known to boot.

    Raises:
        ImageError: The image would not boot.
        EifError: It is not an image.
        UsageError: The configuration cannot be.
        HostError: The host lacks something.
        VsockError: A vsock socket cannot be made.
        NsmError: The test root cannot be made or read.
        OSError: The image cannot be read.
    """
    memory_mib = choose_memory_mib(config)
    with Eif.open(config.eif_path) as eif:
        measurements = measure_bootable(eif)
        memory, regions = _allocate(memory_mib * MIB, resources, shared=config.vhost_user_path is not None)
        image_mib = config.eif_path.stat().st_size / MIB
        if bytes(eif.kernel[: len(ELF_MAGIC)]) == ELF_MAGIC:
            say("warning: the kernel is an ELF file, which boots here; Nitro boots a bzImage only")
        say(f"booting {config.eif_path} ({image_mib:.1f} MiB) in {memory_mib} MiB")
        for note in notes:
            say(note)

        processors = _choose_processors(config, accelerator, say)
        machine = Machine(
            memory, accelerator, console=console, console_ready=console_ready, processors=processors
        )
        resources.callback(machine.close)
        nsm = security_module(config, measurements)
        machine.add_virtio("nsm", NsmDevice(nsm, memory.guest))
        engine: VsockEngine | None = None
        vsock: VsockBackEnd
        if config.vhost_user_path is not None:
            vsock = VhostUserVsockDevice(
                config.vhost_user_path, memory.guest, regions, locked=machine.locked, clock=time.monotonic
            )
        else:
            engine = VsockEngine(_vsock_config(config), services=services, host_side=host_side)
            resources.callback(engine.close)  # should the next line fail: the device closes it, too
            vsock = VsockDevice(engine, memory.guest, locked=machine.locked)
        resources.callback(vsock.close)
        machine.add_virtio("vsock", vsock)

        entry = load(
            memory.guest,
            memory_mib * MIB,
            kernel_image=eif.kernel,
            image_command_line=bytes(eif.cmdline),
            ramdisks=eif.ramdisks,
            rng_seed=os.urandom(RNG_SEED_BYTES),
            virtio_slots=machine.board.virtio_slots,
            processors=processors,
            kvm_clock=machine.kvm_clock,
            append=[config.cmdline_append.encode()] if config.cmdline_append else [],
            unpack=KernelCache(Cache()).contents,
        )
    return Assembly(machine, entry, vsock, engine, measurements, nsm, nsm.module_id, memory_mib, processors)


def _choose_processors(config: EnclaveConfig, accelerator: Accelerator, say: Callable[[str], None]) -> int:
    if config.processors is None:
        return accelerator.processors_default
    if config.processors > accelerator.processors_max:
        most = accelerator.processors_max
        say(f"the enclave has {most} processor, not {config.processors}: {accelerator.name} has no more")
        return most
    return config.processors


def _allocate(memory_bytes: int, resources: ExitStack, *, shared: bool) -> tuple[Memory, list[SharedRegion]]:
    if not shared:
        return Memory(memory_bytes), []
    fd = os.memfd_create("enclave-ram", os.MFD_CLOEXEC)
    resources.callback(os.close, fd)
    os.truncate(fd, memory_bytes)
    memory = Memory(memory_bytes, fd=fd)
    regions, offset = [], 0
    for address, size in memory.ranges:
        regions.append(SharedRegion(address, size, fd, offset))
        offset += size
    return memory, regions


def _vsock_config(config: EnclaveConfig) -> VsockConfig:
    # AWS documents that a parent's connections come from CID 3; the vsock device by itself would say 2.
    return VsockConfig(
        guest_cid=config.cid, uds_path=config.vsock_path, seqpacket=config.seqpacket, source_cid=PARENT_CID
    )
