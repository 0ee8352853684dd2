"""The first half of a launch where there may be a saved machine: goes on from it, or boots.

As `nitro_vmm.enclave.boot`, it imports no trio, no cryptography and no pydantic, because the guest runs when
it is done. The devices of the virtio slots get their saved states when they are made, see `Board.settle`.
"""

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from nitro_eif import Eif
from nitro_vmm.accel import Accelerator, SavesMachines
from nitro_vmm.address_map import MIB
from nitro_vmm.boot import canonical
from nitro_vmm.devices.generation_id import GENERATION_ID_BYTES
from nitro_vmm.enclave.boot import Begun, Image, Surroundings, boot, look_at, make_hardware, open_image
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
from nitro_vmm.enclave.timeline import LOADED
from nitro_vmm.errors import StateError, UsageError
from nitro_vmm.machine.machine import Machine
from nitro_vmm.machine.memory import Memory
from nitro_vmm.machine.program import Program
from nitro_vmm.snapshot.layout import Parameters
from nitro_vmm.snapshot.renewal import renew
from nitro_vmm.snapshot.store import Saved

if TYPE_CHECKING:
    from nitro_vmm.plain_config import EnclaveSettings

VSOCK: Final = "vsock"
"""What the board calls the device that has the enclave's address."""


class Resumption(NamedTuple):
    """A launch that may go on from a saved machine; see `nitro_vmm.enclave.begin`."""

    config: "EnclaveSettings"
    accelerator: Accelerator
    resources: ExitStack
    around: Surroundings
    to_save: str

    def begin(self) -> Begun:
        """Make the machine."""
        config, accelerator = self.config, self.accelerator
        given = None
        if config.snapshot_path is not None:
            ahead = None if self.around.ahead is None else self.around.ahead.saved
            given = open_given(
                config.snapshot_path, accelerator, self.resources, self.around.proceed, ahead=ahead
            )
            if config.eif_path == config.snapshot_path:
                return self._go_on(self._image_of(given), given, None)
        memory_mib = choose_memory_mib(config)
        with open_image(config, self.around) as (eif, measured):
            image = look_at(
                config, eif, accelerator, memory_mib=memory_mib, around=self.around, measured=measured
            )
            machines = self._machines(image, eif, given)
            if given is not None:
                check_fits(given, machines.get(given.description.parameters.kind))
                return self._go_on(image, given, eif)
            missing: list[Parameters] = []
            for kind in KINDS[config.warm]:
                if kind in machines:
                    if (begun := self._warm(image, machines[kind], eif)) is not None:
                        return begun._replace(machines=machines, missing=tuple(missing))
                    missing.append(machines[kind])
            ramdisks = None
            if self.to_save == KERNEL and KERNEL in machines:
                ramdisks = canonical.empty(machines[KERNEL].ramdisk_bytes)
            hardware, entry = boot(
                config, eif, image, accelerator, self.resources, around=self.around, ramdisks=ramdisks
            )
            return Begun(hardware, entry, machines=machines, missing=tuple(missing))

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

    def _warm(self, image: Image, parameters: Parameters, eif: Eif) -> Begun | None:
        """Go on from a saved machine of the cache, if there is one that can."""
        assert isinstance(self.accelerator, SavesMachines)  # noqa: S101 - else there are no parameters
        with ExitStack() as attempt:
            saved = find(parameters, self.accelerator, attempt, self.around.proceed)
            if saved is None:
                return None
            try:
                begun = self._replace(resources=attempt)._go_on(image, saved, eif)  # noqa: SLF001 - of this class
            except StateError:
                forget(parameters)
                return None
            self.resources.push(attempt.pop_all())
            return begun._replace(cached=parameters)

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

    def _go_on(self, image: Image, saved: Saved, eif: Eif | None) -> Begun:
        description = saved.description
        self.around.say(f"going on from {saved.file.name} in {image.memory_mib} MiB")
        memory = Memory(image.memory_mib * MIB, huge=False)
        saved.load(memory)
        if description.parameters.kind == KERNEL and eif is not None:
            room = description.parameters.ramdisk_bytes
            canonical.fill(
                *(memory.guest, description.ramdisk_address, room, eif.ramdisks), self.around.proceed
            )
        hardware = make_hardware(image, memory, self.accelerator, self.resources, self.around)
        hardware.machine.restore(description.state)
        hardware.machine.change_generation(os.urandom(GENERATION_ID_BYTES))
        # There are no connections before the first program.
        known = not description.vsock_found or description.cid == self.config.cid
        self._renew_at_first_program(hardware.machine, address_known=known)
        self.around.timeline.note(LOADED)
        return Begun(hardware, None, address_known=known, printed=description.console)

    def _renew_at_first_program(self, machine: Machine, *, address_known: bool) -> None:
        def settled() -> bool:
            # The vsock device tells the guest to read its address once more.
            return address_known or machine.board.configuration_reads(VSOCK) > 0

        def begin(program: Program) -> None:
            renew(program, settled=settled, wall_clock_ns=time.time_ns)

        machine.at_first_program(begin)
