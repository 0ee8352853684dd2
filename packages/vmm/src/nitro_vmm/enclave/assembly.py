"""Puts an enclave together: image, memory, security module, vsock, machine, and the kernel in it."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Protocol

from nitro_eif import Eif, Measurements, kernel_problem
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
from nitro_vmm.enclave.timeline import LOADED, MEASURED, NSM_REQUEST, Timeline
from nitro_vmm.machine.machine import Machine
from nitro_vmm.machine.memory import Memory
from nitro_vsock import GuestMemory, HostSide, Service, VsockConfig, VsockEngine
from nitro_vsock.vhost_user import SharedRegion

RNG_SEED_BYTES: Final = 64
PARENT_CID: Final = 3
CID_BYTES: Final = 8
"""A vsock device's whole configuration space (virtio 1.3 §5.10.4)."""


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
    memory: GuestMemory
    """Its memory."""
    entry: EntryState
    """Where its kernel begins."""
    vsock: VsockBackEnd
    """What the main loop has to turn."""
    engine: VsockEngine | None
    """The vsock device of this process; `None` when a daemon serves it."""
    cid: int
    """The enclave's vsock address, which a daemon may have chosen."""
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
    timeline: Timeline,
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
        timeline: Told what happens, for whoever wants to know when.
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
        timeline.note(MEASURED)
        memory, regions = _allocate(memory_mib * MIB, resources, shared=config.vhost_user_path is not None)
        image_mib = config.eif_path.stat().st_size / MIB
        if problem := kernel_problem(eif.kernel, eif.architecture):
            say(f"warning: this image boots here only: {problem}")
        say(f"booting {config.eif_path} ({image_mib:.1f} MiB) in {memory_mib} MiB")
        for note in notes:
            say(note)

        processors = _choose_processors(config, accelerator, say)
        machine = Machine(
            memory, accelerator, console=console, console_ready=console_ready, processors=processors
        )
        resources.callback(machine.close)
        nsm = security_module(config, measurements)
        nsm_device = NsmDevice(nsm, memory.guest, on_request=lambda: timeline.note(NSM_REQUEST))
        machine.add_virtio("nsm", nsm_device, on_driver=lambda: timeline.note("nsm driver runs"))
        engine: VsockEngine | None = None
        cid = config.cid
        vsock: VsockBackEnd
        if config.vhost_user_path is not None:
            daemon = VhostUserVsockDevice(
                config.vhost_user_path, memory.guest, regions, locked=machine.locked, clock=time.monotonic
            )
            cid = int.from_bytes(daemon.read_config(0, CID_BYTES), "little")
            vsock = daemon  # which was told the address, and tells it the guest
        else:
            engine = VsockEngine(_vsock_config(config), services=services, host_side=host_side)
            resources.callback(engine.close)  # should the next line fail: the device closes it, too
            vsock = VsockDevice(engine, memory.guest, locked=machine.locked)
        resources.callback(vsock.close)
        machine.add_virtio("vsock", vsock, on_driver=lambda: timeline.note("vsock driver runs"))

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
            append=_appended(config),
            unpack=KernelCache(Cache()).contents,
        )
        timeline.note(LOADED)
    return Assembly(
        machine,
        memory.guest,
        entry,
        vsock,
        engine,
        cid,
        measurements,
        nsm,
        nsm.module_id,
        memory_mib,
        processors,
    )


def _appended(config: EnclaveConfig) -> list[bytes]:
    """What follows the image's command line; the last word on a setting counts for Linux."""
    words = [b"quiet"] if config.quiet_kernel else []
    return [*words, config.cmdline_append.encode()] if config.cmdline_append else words


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
