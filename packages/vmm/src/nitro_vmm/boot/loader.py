"""Puts a kernel with all it needs into guest RAM, and says in which state the processor must start it."""

from collections.abc import Iterator, Sequence

from nitro_vmm.accel.state import EntryState
from nitro_vmm.address_map import (
    ACPI_RSDP,
    BIOS_RESET,
    BOOT_PARAMS,
    BOOT_STACK_TOP,
    MP_TABLE,
    VirtioSlot,
    ram_ranges,
)
from nitro_vmm.boot import acpi, bios, boot_params, command_line, elf, initramfs, kernel, long_mode, mp_table
from nitro_vmm.boot.payload import Unpack, decompress
from nitro_vmm.boot.ram import Bytes, Proceed, Ram, nothing


def load(
    ram: Ram,
    memory_bytes: int,
    *,
    kernel_image: Bytes,
    image_command_line: bytes,
    ramdisks: Sequence[Bytes],
    rng_seed: bytes,
    virtio_slots: Sequence[VirtioSlot] = (),
    processors: int = 1,
    kvm_clock: bool = False,
    append: Sequence[bytes] = (),
    unpack: Unpack = decompress,
    proceed: Proceed = nothing,
) -> EntryState:
    """Load a kernel, its ramdisks, and the tables that describe the machine to it.

    Args:
        ram: RAM as ``address_map.ram_ranges(memory_bytes)`` says, all zero.
        memory_bytes: How much RAM there is; at least 2 MiB.
        kernel_image: A bzImage or an ELF ``vmlinux``.
        image_command_line: The image's own command line.
        ramdisks: Archives that together become the initramfs.
        rng_seed: For the guest's random number generator; with 32 bytes or more it is ready at once.
        virtio_slots: Where the machine has virtio-mmio devices.
        processors: How many processors it has.
        kvm_clock: Whether they have kvm-clock, so that the kernel need not know of a CMOS clock.
        append: More arguments for the command line.
        unpack: Decompresses the kernel.
        proceed: See `Proceed`.

    Raises:
        ImageError: The image is broken, unsupported, or does not fit the memory.
    """
    ranges = ram_ranges(memory_bytes)

    def unpack_on(payload: memoryview, *, offset: int, bytes_max: int) -> Iterator[Bytes]:
        for piece in unpack(payload, offset=offset, bytes_max=bytes_max):
            proceed()
            yield piece

    parsed = kernel.parse(kernel_image, memory_bytes=memory_bytes, unpack=unpack_on)
    line = command_line.compose(
        image_command_line,
        (*append, *(command_line.virtio_mmio(slot) for slot in virtio_slots)),
        bytes_max=parsed.command_line_bytes_max,
    )
    loaded = elf.load(parsed.elf, ram, ranges[0])
    placed = initramfs.place(
        *(ramdisks, ram, ranges),
        start_min=loaded.end,
        end_max=parsed.initrd_end_max,
        proceed=proceed,
    )
    boot_params.write(
        ram,
        setup_header=parsed.setup_header,
        ram_ranges=ranges,
        command_line=line,
        initramfs=placed,
        rng_seed=rng_seed,
    )
    for address, table in (
        (MP_TABLE, mp_table.build({slot.irq for slot in virtio_slots}, processors=processors)),
        (ACPI_RSDP, acpi.build(virtio_slots, processors=processors, kvm_clock=kvm_clock)),
        (BIOS_RESET, bios.RESET_CODE),
    ):
        ram.slice(address, len(table))[:] = table
    long_mode.write(ram)
    return long_mode.entry_state(loaded.entry, rsp=BOOT_STACK_TOP, rsi=BOOT_PARAMS, command_line=line)
