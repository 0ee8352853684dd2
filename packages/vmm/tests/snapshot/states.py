"""Saved machines for tests: a real state, and a description around it."""

from functools import cache

from nitro_nsm import Nsm, NsmConfig
from nitro_vmm.accel.unicorn import Unicorn
from nitro_vmm.address_map import MIB
from nitro_vmm.devices.nsm import NsmDevice
from nitro_vmm.machine.machine import Machine, MachineState
from nitro_vmm.machine.memory import Memory
from nitro_vmm.snapshot.layout import Description, Parameters
from saved_states import checked

MEMORY_BYTES = 4 * MIB


@cache
def machine_state() -> MachineState:
    """The state of a machine on Unicorn that has not run."""
    memory = Memory(MEMORY_BYTES)
    machine = Machine(memory, Unicorn(), console=lambda _data: None, console_ready=lambda: None)
    machine.add_virtio("nsm", NsmDevice(Nsm(NsmConfig()), memory.guest))
    machine.pause()
    state = machine.state()
    machine.close()
    return state


def parameters(**changes: object) -> Parameters:
    """Of a machine with 4 MiB."""
    values: dict[str, object] = {
        "kind": "image",
        "code": bytes(32),
        "accelerator": "unicorn",
        "processor": "Unicorn 2.1.4",
        "memory_bytes": MEMORY_BYTES,
        "processors": 1,
        "devices": ("nsm", "vsock"),
        "kernel": bytes(32),
        "command_line": b"quiet",
        "image": bytes(32),
        "ramdisk_bytes": 0,
    }
    return checked(Parameters(**{**values, **changes}))  # type: ignore[arg-type]


def description(**changes: object) -> Description:
    """Of a machine that has not run."""
    values: dict[str, object] = {
        "parameters": parameters(),
        "measurements": (bytes(48),) * 3,
        "cid": 16,
        "vsock_found": True,
        "console": b"booting\n",
        "state": machine_state(),
        "ramdisk_address": 0,
        "extents": (),
    }
    return checked(Description(**{**values, **changes}))  # type: ignore[arg-type]
