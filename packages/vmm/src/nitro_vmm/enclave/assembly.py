"""Puts an enclave together: image, memory, security module, vsock, machine, and the kernel in it."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final, Protocol

from nitro_eif import Eif, Measurements, kernel_problem
from nitro_nsm import Nsm
from nitro_vmm.accel import Accelerator, EntryState, SavesMachines
from nitro_vmm.address_map import MIB
from nitro_vmm.boot import canonical
from nitro_vmm.boot.loader import load
from nitro_vmm.cache import Cache
from nitro_vmm.config import EnclaveConfig
from nitro_vmm.devices.nsm import NsmDevice
from nitro_vmm.devices.vhost_user_vsock import VhostUserVsockDevice
from nitro_vmm.devices.virtio import VirtioDevice
from nitro_vmm.devices.vsock import VsockDevice
from nitro_vmm.enclave.image import choose_memory_mib, measure_bootable
from nitro_vmm.enclave.kernel_cache import KernelCache
from nitro_vmm.enclave.saved import (
    KERNEL,
    KINDS,
    appended,
    check_fits,
    find,
    forget,
    measurements_of,
    open_given,
    parameters_of,
)
from nitro_vmm.enclave.security import security_module
from nitro_vmm.enclave.timeline import LOADED, MEASURED, NSM_REQUEST, Timeline
from nitro_vmm.errors import StateError, UsageError
from nitro_vmm.machine.machine import Machine
from nitro_vmm.machine.memory import Memory
from nitro_vmm.machine.program import Program
from nitro_vmm.snapshot.layout import Parameters
from nitro_vmm.snapshot.renewal import renew
from nitro_vmm.snapshot.store import Saved
from nitro_vsock import HostSide, Service, VsockConfig, VsockEngine
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
    memory: Memory
    """The machine's."""
    entry: EntryState | None
    """Where its kernel begins; `None` where it goes on from a saved machine."""
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
    machines: dict[str, Parameters]
    """By what saved machines of this enclave's are known, by kind."""
    missing: tuple[Parameters, ...] = ()
    """Those that would have been better, and are not in the cache."""
    printed: bytes = b""
    """What the guest has printed before it was saved."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an enclave is connected to."""

    console: Callable[[bytes], None]
    """See `Machine`."""
    console_ready: Callable[[], None]
    """See `Machine`."""
    host_side: HostSide
    """Where its connections go."""
    services: dict[int, Service]
    """Servers on ports that ``host_side`` does not know."""
    say: Callable[[str], None]
    """Told what happens, for people."""
    timeline: Timeline
    """Told what happens, for whoever wants to know when."""
    notes: Sequence[str] = ()
    """More to say once the image is known to boot."""


def assemble(
    config: EnclaveConfig,
    accelerator: Accelerator,
    resources: ExitStack,
    around: Surroundings,
    *,
    to_save: str = "",
) -> Assembly:
    """Make an enclave. Takes long enough to be called in a thread.

    Args:
        config: What is wanted.
        accelerator: What runs it.
        resources: Gets what has to be given back when the enclave has ended.
        around: What it is connected to.
        to_save: The kind of machine to be saved, if it is booted for that.

    Raises:
        ImageError: The image would not boot.
        EifError: It is not an image.
        UsageError: The configuration cannot be.
        HostError: The host lacks something.
        StateError: The saved machine cannot go on here.
        VsockError: A vsock socket cannot be made.
        NsmError: The test root cannot be made or read.
        OSError: The image cannot be read.
    """
    return _Assembler(config, accelerator, resources, around, to_save).assemble()


@dataclass(frozen=True, slots=True)
class _Image:
    measurements: Measurements
    memory_mib: int
    processors: int
    machines: dict[str, Parameters]


@dataclass(frozen=True, slots=True)
class _Assembler:
    """What `assemble` was given."""

    config: EnclaveConfig
    accelerator: Accelerator
    resources: ExitStack
    around: Surroundings
    to_save: str

    def assemble(self) -> Assembly:
        config, accelerator = self.config, self.accelerator
        given = None
        if config.snapshot_path is not None:
            given = open_given(config, accelerator, self.resources)
            if config.eif_path == config.snapshot_path:
                return self.go_on(self._image_of(given), given, None)
        memory_mib = choose_memory_mib(config)
        with Eif.open(config.eif_path) as eif:
            measurements = measure_bootable(eif)
            self.around.timeline.note(MEASURED)
            processors = _choose_processors(config, accelerator, self.around.say)
            machines = {}
            if isinstance(accelerator, SavesMachines) and config.vhost_user_path is None:
                kinds = {*KINDS[config.warm], self.to_save} - {""}
                if given is not None:
                    kinds.add(given.description.parameters.kind)
                for kind in kinds:
                    parameters = parameters_of(
                        *(kind, config, accelerator, eif, measurements),
                        memory_mib=memory_mib,
                        processors=processors,
                    )
                    if parameters is not None:
                        machines[kind] = parameters
            elif config.warm != "off":
                self.around.say(f"the accelerator {accelerator.name} does not save machines here")
            image = _Image(measurements, memory_mib, processors, machines)
            if given is not None:
                check_fits(given, machines.get(given.description.parameters.kind))
                return self.go_on(image, given, eif)
            missing: list[Parameters] = []
            for kind in KINDS[config.warm]:
                if kind in machines:
                    if (assembly := self._warm(image, machines[kind], eif)) is not None:
                        return replace(assembly, missing=tuple(missing))
                    missing.append(machines[kind])
            return replace(self._boot(image, eif), missing=tuple(missing))

    def _warm(self, image: _Image, parameters: Parameters, eif: Eif) -> Assembly | None:
        """Go on from a saved machine of the cache, if there is one that can."""
        assert isinstance(self.accelerator, SavesMachines)  # noqa: S101 - else there are no parameters
        with ExitStack() as attempt:
            saved = find(parameters, self.accelerator, attempt)
            if saved is None:
                return None
            try:
                assembly = replace(self, resources=attempt).go_on(image, saved, eif)
            except StateError:
                forget(parameters)
                return None
            self.resources.push(attempt.pop_all())
            return assembly

    def _image_of(self, saved: Saved) -> _Image:
        """What is known of an image by the machine that was saved."""
        wanted, described = self.config.memory_mib, saved.description.parameters
        if described.kind == KERNEL:
            raise UsageError(
                f"{saved.file.name} is of a kernel, and serves every image with it",
                hint="give the image, too",
            )
        memory_mib = described.memory_bytes // MIB
        if wanted not in {None, memory_mib}:
            raise UsageError(
                f"{saved.file.name} is of a machine with {memory_mib} MiB, not {wanted}",
                hint="leave --memory-mib out",
            )
        return _Image(measurements_of(saved.description), memory_mib, described.processors, {})

    def _boot(self, image: _Image, eif: Eif) -> Assembly:
        config, say = self.config, self.around.say
        shared = config.vhost_user_path is not None
        memory, regions = _allocate(image.memory_mib * MIB, self.resources, shared=shared)
        image_mib = config.eif_path.stat().st_size / MIB
        if problem := kernel_problem(eif.kernel, eif.architecture):
            say(f"warning: this image boots here only: {problem}")
        say(f"booting {config.eif_path} ({image_mib:.1f} MiB) in {image.memory_mib} MiB")
        assembly = self._build(image, memory, regions)
        ramdisks: Sequence[bytes | bytearray | memoryview] = eif.ramdisks
        if self.to_save == KERNEL and KERNEL in image.machines:
            ramdisks = canonical.empty(image.machines[KERNEL].ramdisk_bytes)
        entry = load(
            memory.guest,
            image.memory_mib * MIB,
            kernel_image=eif.kernel,
            image_command_line=bytes(eif.cmdline),
            ramdisks=ramdisks,
            rng_seed=os.urandom(RNG_SEED_BYTES),
            virtio_slots=assembly.machine.board.virtio_slots,
            processors=image.processors,
            kvm_clock=assembly.machine.kvm_clock,
            append=appended(config),
            unpack=KernelCache(Cache()).contents,
        )
        self.around.timeline.note(LOADED)
        return replace(assembly, entry=entry)

    def go_on(self, image: _Image, saved: Saved, eif: Eif | None) -> Assembly:
        description, config = saved.description, self.config
        self.around.say(f"going on from {saved.file.name} in {image.memory_mib} MiB")
        memory = Memory(image.memory_mib * MIB, huge=False)
        saved.load(memory)
        if description.parameters.kind == KERNEL and eif is not None:
            room = description.parameters.ramdisk_bytes
            canonical.fill(memory.guest, description.ramdisk_address, room, eif.ramdisks)
        assembly = self._build(image, memory, [])
        assembly.machine.restore(description.state)
        vsock = assembly.vsock

        def settled() -> bool:
            same = description.cid == config.cid or not description.vsock_found
            return same or not isinstance(vsock, VsockDevice) or vsock.config_reads > 0

        def begin(program: Program) -> None:
            renew(program, settled=settled, wall_clock_ns=time.time_ns)

        assembly.machine.at_first_program(begin)
        self.around.timeline.note(LOADED)
        return replace(assembly, printed=description.console)

    def _build(self, image: _Image, memory: Memory, regions: list[SharedRegion]) -> Assembly:
        config, around, timeline = self.config, self.around, self.around.timeline
        for note in around.notes:
            around.say(note)
        machine = Machine(
            memory,
            self.accelerator,
            console=around.console,
            console_ready=around.console_ready,
            processors=image.processors,
        )
        self.resources.callback(machine.close)
        nsm = security_module(config, image.measurements)
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
            engine = VsockEngine(_vsock_config(config), services=around.services, host_side=around.host_side)
            self.resources.callback(engine.close)  # should the next line fail: the device closes it, too
            vsock = VsockDevice(engine, memory.guest, locked=machine.locked)
        self.resources.callback(vsock.close)
        machine.add_virtio("vsock", vsock, on_driver=lambda: timeline.note("vsock driver runs"))
        return Assembly(
            machine=machine,
            memory=memory,
            entry=None,
            vsock=vsock,
            engine=engine,
            cid=cid,
            measurements=image.measurements,
            nsm=nsm,
            module_id=nsm.module_id,
            memory_mib=image.memory_mib,
            processors=image.processors,
            machines=image.machines,
        )


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
