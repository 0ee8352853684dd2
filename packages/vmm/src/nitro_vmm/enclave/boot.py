"""The first half of a launch: image, memory and machine, and the kernel in it.

A guest can run from here on, while the second half (`nitro_vmm.enclave.assembly`) makes the devices that its
kernel looks for some tenths of a second later. So this half imports no trio, no
cryptography and no pydantic.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from nitro_eif import Eif, Measurements, kernel_problem
from nitro_vmm.accel import Accelerator, EntryState
from nitro_vmm.address_map import MIB
from nitro_vmm.boot.ram import Proceed, nothing
from nitro_vmm.devices.generation_id import GENERATION_ID_BYTES
from nitro_vmm.enclave.image import choose_memory_mib, measure_bootable
from nitro_vmm.enclave.timeline import LOADED, MEASURED, Timeline
from nitro_vmm.machine.machine import Machine
from nitro_vmm.machine.memory import Memory

if TYPE_CHECKING:
    from nitro_eif import Measured
    from nitro_vmm.enclave.ahead import Ahead
    from nitro_vmm.plain_config import EnclaveSettings
    from nitro_vmm.snapshot.layout import Parameters

DEVICES: Final = ("nsm", "vsock")
"""The virtio devices, in the order of their slots."""
RNG_SEED_BYTES: Final = 64


class Surroundings(NamedTuple):
    """Who is told what a machine does."""

    console: Callable[[bytes], None]
    """See `Machine`."""
    console_ready: Callable[[], None]
    """See `Machine`."""
    say: Callable[[str], None]
    """Told what happens, for people."""
    timeline: Timeline
    """Told what happens, for whoever wants to know when."""
    notes: Sequence[str] = ()
    """More to say once the image is known to boot."""
    proceed: Proceed = nothing
    """Called while images are measured and loaded, which may take long; in any thread."""
    ahead: "Ahead | None" = None
    """What has begun to measure the files, if anything has."""


class Image(NamedTuple):
    """What an image is, and the machine that it gets."""

    measurements: Measurements
    """PCR0, PCR1, PCR2 and PCR8."""
    memory_mib: int
    """How much memory there is."""
    processors: int
    """How many there are."""


class Hardware(NamedTuple):
    """A machine whose virtio devices are still to come."""

    image: Image
    """What it is made for."""
    machine: Machine
    """With a reserved slot for each of `DEVICES`."""
    memory: Memory
    """Its RAM."""
    memory_fd: int
    """The file that the RAM is, for a daemon to map; -1 if there is none."""


class Begun(NamedTuple):
    """What the first half of a launch has made: a machine that can run."""

    hardware: Hardware
    """The machine, and what image that is made for."""
    entry: EntryState | None
    """Where its kernel begins; `None` where it goes on from a saved machine."""
    address_known: bool = False
    """Whether it goes on from a saved machine that had no connections, and the address of this run."""
    printed: bytes = b""
    """What the guest had printed before it was saved."""
    cached: "Parameters | None" = None
    """The saved machine of the cache that it goes on from."""
    machines: "Mapping[str, Parameters]" = MappingProxyType({})
    """By what saved machines of this enclave's are known, by kind."""
    missing: "tuple[Parameters, ...]" = ()
    """Those that would have been better, and are not in the cache."""


@contextmanager
def open_image(config: "EnclaveSettings", around: Surroundings) -> "Iterator[tuple[Eif, Measured | None]]":
    """Open the image that a configuration names; with what it measures, if that was begun before.

    Raises:
        EifError: It is not an image.
        OSError: It cannot be read.
    """
    with ExitStack() as opened:
        if around.ahead is not None:
            found = opened.enter_context(around.ahead.image(around.proceed))
            if found is not None:
                yield found
                return
        yield opened.enter_context(Eif.open(config.eif_path)), None


def look_at(
    config: "EnclaveSettings",
    eif: Eif,
    accelerator: Accelerator,
    *,
    memory_mib: int,
    around: Surroundings,
    measured: "Measured | None",
) -> Image:
    """Measure an image, and choose its machine.

    Args:
        config: What is wanted.
        eif: The image.
        accelerator: What runs it.
        memory_mib: How much memory it gets.
        around: Who is told.
        measured: What `open_image` has said of it.

    Raises:
        ImageError: The image would not boot.
    """
    measurements = measure_bootable(eif, around.proceed, measured=measured)
    around.timeline.note(MEASURED)
    return Image(measurements, memory_mib, _choose_processors(config, accelerator, around.say))


def make_hardware(
    image: Image,
    memory: Memory,
    accelerator: Accelerator,
    resources: ExitStack,
    around: Surroundings,
    *,
    memory_fd: int = -1,
) -> Hardware:
    """Make a machine of memory that is there.

    Raises:
        HostError: The accelerator cannot run on this host.
    """
    for note in around.notes:
        around.say(note)
    machine = Machine(
        memory,
        accelerator,
        console=around.console,
        console_ready=around.console_ready,
        processors=image.processors,
    )
    resources.callback(machine.close)
    for name in DEVICES:
        machine.reserve_virtio(name)
    return Hardware(image, machine, memory, memory_fd)


def boot(
    config: "EnclaveSettings",
    eif: Eif,
    image: Image,
    accelerator: Accelerator,
    resources: ExitStack,
    *,
    around: Surroundings,
    ramdisks: Sequence[bytes | bytearray | memoryview] | None = None,
) -> tuple[Hardware, EntryState]:
    """Make a machine with the image's kernel in it; returns where that begins.

    Args:
        config: What is wanted.
        eif: The image.
        image: What `look_at` found.
        accelerator: What runs it.
        resources: Gets what has to be given back when the machine has ended.
        around: Who is told.
        ramdisks: What the kernel gets instead of the image's own.

    Raises:
        ImageError: The kernel cannot be loaded.
        HostError: The host lacks something.
    """
    # Here, because what goes on from a saved machine needs no boot loader.
    from nitro_vmm.boot.loader import load  # noqa: PLC0415
    from nitro_vmm.cache import Cache  # noqa: PLC0415
    from nitro_vmm.enclave.kernel_cache import KernelCache  # noqa: PLC0415

    shared = config.vhost_user_path is not None
    memory, memory_fd = _allocate(image.memory_mib * MIB, resources, shared=shared)
    image_mib = config.eif_path.stat().st_size / MIB
    if problem := kernel_problem(eif.kernel, eif.architecture):
        around.say(f"warning: this image boots here only: {problem}")
    around.say(f"booting {config.eif_path} ({image_mib:.1f} MiB) in {image.memory_mib} MiB")
    hardware = make_hardware(image, memory, accelerator, resources, around, memory_fd=memory_fd)
    machine = hardware.machine
    machine.change_generation(os.urandom(GENERATION_ID_BYTES))
    entry = load(
        memory.guest,
        image.memory_mib * MIB,
        kernel_image=eif.kernel,
        image_command_line=bytes(eif.cmdline),
        ramdisks=eif.ramdisks if ramdisks is None else ramdisks,
        rng_seed=os.urandom(RNG_SEED_BYTES),
        virtio_slots=machine.board.virtio_slots,
        processors=image.processors,
        kvm_clock=machine.kvm_clock,
        append=appended(config),
        unpack=KernelCache(Cache()).contents,
        proceed=around.proceed,
    )
    around.timeline.note(LOADED)
    return hardware, entry


def boot_cold(
    config: "EnclaveSettings", accelerator: Accelerator, resources: ExitStack, around: Surroundings
) -> Begun:
    """`boot` the image that a configuration names, without a look at saved machines.

    Raises:
        ImageError: The image would not boot.
        EifError: It is not an image.
        UsageError: The configuration cannot be.
        HostError: The host lacks something.
        OSError: The image cannot be read.
    """
    memory_mib = choose_memory_mib(config)
    with open_image(config, around) as (eif, measured):
        image = look_at(config, eif, accelerator, memory_mib=memory_mib, around=around, measured=measured)
        return Begun(*boot(config, eif, image, accelerator, resources, around=around))


def appended(config: "EnclaveSettings") -> list[bytes]:
    """What follows the image's command line; the last word on a setting counts for Linux."""
    words = [b"quiet"] if config.quiet_kernel else []
    return [*words, config.cmdline_append.encode()] if config.cmdline_append else words


def _choose_processors(
    config: "EnclaveSettings", accelerator: Accelerator, say: Callable[[str], None]
) -> int:
    if config.processors is None:
        return accelerator.processors_default
    if config.processors > accelerator.processors_max:
        most = accelerator.processors_max
        say(f"the enclave has {most} processor, not {config.processors}: {accelerator.name} has no more")
        return most
    return config.processors


def _allocate(memory_bytes: int, resources: ExitStack, *, shared: bool) -> tuple[Memory, int]:
    if not shared:
        return Memory(memory_bytes), -1
    fd = os.memfd_create("enclave-ram", os.MFD_CLOEXEC)
    resources.callback(os.close, fd)
    os.truncate(fd, memory_bytes)
    return Memory(memory_bytes, fd=fd), fd
