"""The second half of a launch: security module and vsock, or all of it where there is a saved machine."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from nitro_eif import Eif
from nitro_nsm import Nsm
from nitro_vmm.accel import Accelerator, EntryState, SavesMachines
from nitro_vmm.address_map import MIB
from nitro_vmm.boot import canonical
from nitro_vmm.config import EnclaveConfig
from nitro_vmm.devices.nsm import NsmDevice
from nitro_vmm.devices.virtio import VirtioDevice
from nitro_vmm.devices.vsock import VsockDevice
from nitro_vmm.enclave.boot import Hardware, Image, Surroundings, boot, look_at, make_hardware
from nitro_vmm.enclave.image import choose_memory_mib
from nitro_vmm.enclave.saved import (
    KERNEL,
    KINDS,
    check_fits,
    find,
    forget,
    measurements_of,
    open_given,
    parameters_of,
)
from nitro_vmm.enclave.security import security_module
from nitro_vmm.enclave.timeline import LOADED, NSM_REQUEST, Timeline
from nitro_vmm.errors import StateError, UsageError
from nitro_vmm.machine.machine import Machine
from nitro_vmm.machine.memory import Memory
from nitro_vmm.machine.program import Program
from nitro_vmm.snapshot.layout import Parameters
from nitro_vmm.snapshot.renewal import renew
from nitro_vmm.snapshot.store import Saved
from nitro_vsock import HostSide, Service, VsockConfig, VsockEngine

if TYPE_CHECKING:
    from nitro_vsock.vhost_user import SharedRegion

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
    """An enclave that is ready to run, or runs."""

    hardware: Hardware
    """Its machine, and what image that is made for."""
    entry: EntryState | None
    """Where its kernel begins; `None` where it goes on from a saved machine."""
    vsock: VsockBackEnd
    """What the main loop has to turn."""
    engine: VsockEngine | None
    """The vsock device of this process; `None` when a daemon serves it."""
    cid: int
    """The enclave's vsock address, which a daemon may have chosen."""
    nsm: Nsm
    """The security module; it is used under the machine's lock only."""
    module_id: str
    """The security module's."""
    machines: dict[str, Parameters] = field(default_factory=dict)
    """By what saved machines of this enclave's are known, by kind."""
    missing: tuple[Parameters, ...] = ()
    """Those that would have been better, and are not in the cache."""
    printed: bytes = b""
    """What the guest has printed before it was saved."""

    @property
    def machine(self) -> Machine:
        """With all its devices."""
        return self.hardware.machine


class Reach(NamedTuple):
    """Where an enclave's vsock connections go."""

    host_side: HostSide
    """The parent's programs."""
    services: dict[int, Service]
    """Servers on ports that ``host_side`` does not know."""


def assemble(
    config: EnclaveConfig,
    accelerator: Accelerator,
    resources: ExitStack,
    around: Surroundings,
    reach: Reach,
    *,
    to_save: str = "",
) -> Assembly:
    """Make an enclave. Takes long enough to be called in a thread.

    Args:
        config: What is wanted.
        accelerator: What runs it.
        resources: Gets what has to be given back when the enclave has ended.
        around: Who is told what the machine does.
        reach: Where its connections go.
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
    return _Assembler(config, accelerator, resources, around, reach, to_save).assemble()


def connect(
    config: EnclaveConfig,
    hardware: Hardware,
    resources: ExitStack,
    timeline: Timeline,
    reach: Reach,
    *,
    entry: EntryState | None = None,
) -> Assembly:
    """Give a machine its virtio devices; its guest may run already.

    Args:
        config: What is wanted.
        hardware: The machine.
        resources: See `assemble`.
        timeline: Told what happens.
        reach: See `assemble`.
        entry: Where its kernel begins.

    Raises:
        UsageError: The configuration cannot be.
        HostError: The host lacks something.
        VsockError: A vsock socket cannot be made.
        NsmError: The test root cannot be made or read.
    """
    image, machine, memory = hardware.image, hardware.machine, hardware.memory
    nsm = security_module(config, image.measurements)
    nsm_device = NsmDevice(nsm, memory.guest, on_request=lambda: timeline.note(NSM_REQUEST))
    machine.add_virtio("nsm", nsm_device, on_driver=lambda: timeline.note("nsm driver runs"))
    engine: VsockEngine | None = None
    cid = config.cid
    vsock: VsockBackEnd
    if config.vhost_user_path is not None:
        from nitro_vmm.devices.vhost_user_vsock import VhostUserVsockDevice  # noqa: PLC0415 - few have one

        daemon = VhostUserVsockDevice(
            config.vhost_user_path,
            memory.guest,
            _regions(hardware),
            locked=machine.locked,
            clock=time.monotonic,
        )
        cid = int.from_bytes(daemon.read_config(0, CID_BYTES), "little")
        vsock = daemon  # which was told the address, and tells it the guest
    else:
        engine = VsockEngine(_vsock_config(config), services=reach.services, host_side=reach.host_side)
        resources.callback(engine.close)  # should the next line fail: the device closes it, too
        vsock = device = VsockDevice(engine, memory.guest, locked=machine.locked)
        machine.attend(device)
    resources.callback(vsock.close)
    machine.add_virtio("vsock", vsock, on_driver=lambda: timeline.note("vsock driver runs"))
    return Assembly(
        hardware=hardware,
        entry=entry,
        vsock=vsock,
        engine=engine,
        cid=cid,
        nsm=nsm,
        module_id=nsm.module_id,
    )


@dataclass(frozen=True, slots=True)
class _Assembler:
    """What `assemble` was given."""

    config: EnclaveConfig
    accelerator: Accelerator
    resources: ExitStack
    around: Surroundings
    reach: Reach
    to_save: str

    def assemble(self) -> Assembly:
        config, accelerator = self.config, self.accelerator
        given = None
        if config.snapshot_path is not None:
            given = open_given(config, accelerator, self.resources, self.around.proceed)
            if config.eif_path == config.snapshot_path:
                return self.go_on(self._image_of(given), given, None)
        memory_mib = choose_memory_mib(config)
        with Eif.open(config.eif_path) as eif:
            image = look_at(config, eif, accelerator, memory_mib=memory_mib, around=self.around)
            machines = self._machines(image, eif, given)
            if given is not None:
                check_fits(given, machines.get(given.description.parameters.kind))
                return self.go_on(image, given, eif)
            missing: list[Parameters] = []
            for kind in KINDS[config.warm]:
                if kind in machines:
                    if (assembly := self._warm(image, machines[kind], eif)) is not None:
                        return replace(assembly, machines=machines, missing=tuple(missing))
                    missing.append(machines[kind])
            ramdisks = None
            if self.to_save == KERNEL and KERNEL in machines:
                ramdisks = canonical.empty(machines[KERNEL].ramdisk_bytes)
            hardware, entry = boot(
                config, eif, image, accelerator, self.resources, around=self.around, ramdisks=ramdisks
            )
            assembly = self._connect(hardware, entry)
            return replace(assembly, machines=machines, missing=tuple(missing))

    def _connect(self, hardware: Hardware, entry: EntryState | None) -> Assembly:
        timeline = self.around.timeline
        return connect(self.config, hardware, self.resources, timeline, self.reach, entry=entry)

    def _machines(self, image: Image, eif: Eif, given: Saved | None) -> dict[str, Parameters]:
        """By what the saved machines are known that matter here."""
        config, accelerator = self.config, self.accelerator
        if not isinstance(accelerator, SavesMachines) or config.vhost_user_path is not None:
            if config.warm != "off":
                self.around.say(f"the accelerator {accelerator.name} does not save machines here")
            return {}
        kinds = {*KINDS[config.warm], self.to_save} - {""}
        if given is not None:
            kinds.add(given.description.parameters.kind)
        machines = {}
        for kind in kinds:
            parameters = parameters_of(
                *(kind, config, accelerator, eif, image.measurements),
                memory_mib=image.memory_mib,
                processors=image.processors,
            )
            if parameters is not None:
                machines[kind] = parameters
        return machines

    def _warm(self, image: Image, parameters: Parameters, eif: Eif) -> Assembly | None:
        """Go on from a saved machine of the cache, if there is one that can."""
        assert isinstance(self.accelerator, SavesMachines)  # noqa: S101 - else there are no parameters
        with ExitStack() as attempt:
            saved = find(parameters, self.accelerator, attempt, self.around.proceed)
            if saved is None:
                return None
            try:
                assembly = replace(self, resources=attempt).go_on(image, saved, eif)
            except StateError:
                forget(parameters)
                return None
            self.resources.push(attempt.pop_all())
            return assembly

    def _image_of(self, saved: Saved) -> Image:
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
        return Image(measurements_of(saved.description), memory_mib, described.processors)

    def go_on(self, image: Image, saved: Saved, eif: Eif | None) -> Assembly:
        description, config = saved.description, self.config
        self.around.say(f"going on from {saved.file.name} in {image.memory_mib} MiB")
        memory = Memory(image.memory_mib * MIB, huge=False)
        saved.load(memory)
        if description.parameters.kind == KERNEL and eif is not None:
            room = description.parameters.ramdisk_bytes
            canonical.fill(
                *(memory.guest, description.ramdisk_address, room, eif.ramdisks), self.around.proceed
            )
        hardware = make_hardware(image, memory, self.accelerator, self.resources, self.around)
        assembly = self._connect(hardware, None)
        hardware.machine.restore(description.state)
        vsock = assembly.vsock

        def settled() -> bool:
            same = description.cid == config.cid or not description.vsock_found
            return same or not isinstance(vsock, VsockDevice) or vsock.config_reads > 0

        def begin(program: Program) -> None:
            renew(program, settled=settled, wall_clock_ns=time.time_ns)

        hardware.machine.at_first_program(begin)
        self.around.timeline.note(LOADED)
        return replace(assembly, printed=description.console)


def _regions(hardware: Hardware) -> "list[SharedRegion]":
    from nitro_vsock.vhost_user import SharedRegion  # noqa: PLC0415 - needed where there is a daemon

    regions, offset = [], 0
    for address, size in hardware.memory.ranges:
        regions.append(SharedRegion(address, size, hardware.memory_fd, offset))
        offset += size
    return regions


def _vsock_config(config: EnclaveConfig) -> VsockConfig:
    # AWS documents that a parent's connections come from CID 3; the vsock device by itself would say 2.
    return VsockConfig(
        guest_cid=config.cid, uds_path=config.vsock_path, seqpacket=config.seqpacket, source_cid=PARENT_CID
    )
