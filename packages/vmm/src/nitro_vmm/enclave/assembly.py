"""The second half of a launch: security module and vsock."""

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from nitro_nsm import Nsm
from nitro_vmm.accel import Accelerator
from nitro_vmm.devices.nsm import NsmDevice
from nitro_vmm.devices.virtio import VirtioDevice
from nitro_vmm.devices.vsock import VsockDevice
from nitro_vmm.enclave.begin import begin
from nitro_vmm.enclave.boot import Begun, Hardware, Surroundings
from nitro_vmm.enclave.security import security_module
from nitro_vmm.enclave.timeline import NSM_REQUEST, Timeline
from nitro_vmm.errors import StateError
from nitro_vmm.machine.machine import Machine
from nitro_vsock import HostSide, PlainVsockConfig, Service, VsockEngine

if TYPE_CHECKING:
    from nitro_vmm.plain_config import EnclaveSettings
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


class Assembly(NamedTuple):
    """An enclave that is ready to run, or runs."""

    begun: Begun
    """What the first half of its launch has made."""
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

    @property
    def hardware(self) -> Hardware:
        """Its machine, and what image that is made for."""
        return self.begun.hardware

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
    config: "EnclaveSettings",
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
    begun = begin(config, accelerator, resources, around, to_save=to_save)
    return connect(config, begun, resources, around.timeline, reach)


def connect(
    config: "EnclaveSettings", begun: Begun, resources: ExitStack, timeline: Timeline, reach: Reach
) -> Assembly:
    """Give a machine its virtio devices; its guest may run already.

    Args:
        config: What is wanted.
        begun: The machine.
        resources: See `assemble`.
        timeline: Told what happens.
        reach: See `assemble`.

    Raises:
        UsageError: The configuration cannot be.
        HostError: The host lacks something.
        StateError: The saved machine cannot go on here; if it was of the cache, it is removed.
        VsockError: A vsock socket cannot be made.
        NsmError: The test root cannot be made or read.
    """
    hardware = begun.hardware
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
        vsock = device = VsockDevice(engine, memory.guest, locked=machine.locked, fresh=begun.address_known)
        machine.attend(device)
    resources.callback(vsock.close)
    machine.add_virtio("vsock", vsock, on_driver=lambda: timeline.note("vsock driver runs"))
    try:
        machine.settle()
    except StateError:
        if begun.cached is not None:
            from nitro_vmm.enclave.saved import forget  # noqa: PLC0415 - this should not happen

            forget(begun.cached)
        raise
    return Assembly(
        begun=begun,
        vsock=vsock,
        engine=engine,
        cid=cid,
        nsm=nsm,
        module_id=nsm.module_id,
    )


def _regions(hardware: Hardware) -> "list[SharedRegion]":
    from nitro_vsock.vhost_user import SharedRegion  # noqa: PLC0415 - needed where there is a daemon

    regions, offset = [], 0
    for address, size in hardware.memory.ranges:
        regions.append(SharedRegion(address, size, hardware.memory_fd, offset))
        offset += size
    return regions


def _vsock_config(config: "EnclaveSettings") -> PlainVsockConfig:
    # AWS documents that a parent's connections come from CID 3; the vsock device by itself would say 2.
    return PlainVsockConfig(
        guest_cid=config.cid, uds_path=config.vsock_path, seqpacket=config.seqpacket, source_cid=PARENT_CID
    )
