"""Boots an image to its first program, or to the unpacking of its ramdisks, and saves the machine there."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import BinaryIO

from nitro_vmm.accel import Accelerator
from nitro_vmm.boot import canonical
from nitro_vmm.config import EnclaveConfig
from nitro_vmm.enclave.assembly import Assembly, Reach, assemble
from nitro_vmm.enclave.boot import Surroundings
from nitro_vmm.enclave.saved import KERNEL, saving
from nitro_vmm.enclave.timeline import Timeline
from nitro_vmm.errors import GuestError, UsageError
from nitro_vmm.machine.program import Program
from nitro_vmm.snapshot.layout import CONSOLE_BYTES_MAX, Description, Parameters
from nitro_vmm.snapshot.renewal import renew
from nitro_vmm.snapshot.store import write
from nitro_vsock import SocketType


class _NobodySide:
    """The host side of a guest that has no program yet."""

    def connect(self, port: int, socket_type: SocketType) -> socket.socket:  # noqa: ARG002
        raise FileNotFoundError


class Saving:
    """One boot for the sake of a saved machine.

    Args:
        config: The image and its machine. How the enclave is reached is nothing that is saved.
        accelerator: What runs it.
        kind: Which machine to save, see `nitro_vmm.enclave.saved`.
        resources: Gets what has to be given back.
        say: Told what happens, for people.
        notes: More to say once the image is known to boot.

    Raises:
        HostError: The accelerator cannot save machines, or the host lacks something.
        VmmError, EifError, VsockError, NsmError, OSError: See `assemble`.
    """

    def __init__(
        self,
        config: EnclaveConfig,
        accelerator: Accelerator,
        resources: ExitStack,
        *,
        kind: str,
        say: Callable[[str], None],
        notes: tuple[str, ...] = (),
    ) -> None:
        saving(accelerator)
        unreached = {"snapshot_path": None, "warm": "off", "vsock_path": None, "vhost_user_path": None}
        self._config = config.model_copy(update=unreached)
        self._console = bytearray()
        self._saved = False
        around = Surroundings(
            console=self._console.extend,
            console_ready=lambda: None,
            say=say,
            timeline=Timeline(lambda: 0.0),  # nobody looks at it
            notes=notes,
        )
        reach = Reach(_NobodySide(), {})
        self._assembly: Assembly = assemble(self._config, accelerator, resources, around, reach, to_save=kind)
        if kind not in self._assembly.begun.machines:
            raise UsageError(
                "the kernel reads this image's ramdisks before it unpacks them",
                hint="leave --kernel out",
            )
        self.parameters: Parameters = self._assembly.begun.machines[kind]
        """By what the saved machine is known."""
        memory = self._assembly.hardware.memory
        self._ramdisk_address = canonical.find(memory.guest)[0] if kind == KERNEL else 0

    def save(self, file: BinaryIO) -> None:
        """Boot, and write the machine into an empty file.

        Raises:
            GuestError: The guest has no first program, or its kernel cannot be told that it was saved.
            OSError: The file cannot be written.
        """
        machine = self._assembly.machine

        def at_program(program: Program) -> None:
            # As the guest's next life will begin: what cannot be renewed must not be saved.
            renew(program, settled=lambda: True, wall_clock_ns=time.time_ns)
            self._write(file)
            machine.stop()

        def at_unpacking() -> None:
            self._write(file)
            machine.stop()

        if self.parameters.kind == KERNEL:
            machine.at_page(self._ramdisk_address, at_unpacking)
        else:
            machine.at_first_program(at_program)
        timer = threading.Timer(self._config.boot_timeout_s, machine.stop)
        timer.daemon = True
        timer.start()
        try:
            ending = machine.run(self._assembly.begun.entry)
        finally:
            timer.cancel()
        if not self._saved:
            text = bytes(self._console[-500:]).decode(errors="replace").strip().rpartition("\n")[2]
            raise GuestError(
                f"the guest {ending.end.value} before its first program ran", hint=f"it printed last: {text}"
            )

    def _write(self, file: BinaryIO) -> None:
        assembly, machine = self._assembly, self._assembly.machine
        machine.pause()
        measured = assembly.hardware.image.measurements
        pcrs = (measured.pcr0, measured.pcr1, measured.pcr2)
        description = Description(
            parameters=self.parameters,
            measurements=pcrs if measured.pcr8 is None else (*pcrs, measured.pcr8),
            cid=self._config.cid,
            vsock_found=machine.board.driver_runs("vsock"),
            console=bytes(self._console[:CONSOLE_BYTES_MAX]),
            state=machine.state(),
            ramdisk_address=self._ramdisk_address,
            extents=(),
        )
        write(file, description, assembly.hardware.memory)
        self._saved = True
        machine.resume()
