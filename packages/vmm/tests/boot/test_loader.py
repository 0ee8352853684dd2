import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boot_images import COMPRESSIONS, ENTRY, REAL_KERNEL, FakeRam, make_bzimage, small_elf
from nitro_vmm import address_map
from nitro_vmm.accel import EntryState
from nitro_vmm.address_map import MIB
from nitro_vmm.boot import setup_header as header
from nitro_vmm.boot.loader import load
from nitro_vmm.errors import ImageError

MEMORY_BYTES = 64 * MIB


def load_64_mib(image: bytes, ram: FakeRam | None = None, *, command_line: bytes = b"quiet") -> EntryState:
    return load(
        ram or FakeRam(MEMORY_BYTES),
        MEMORY_BYTES,
        kernel_image=image,
        image_command_line=command_line,
        ramdisks=[b"070701", b"070702"],
        rng_seed=bytes(32),
        virtio_slots=[address_map.virtio_slot(index) for index in range(2)],
        append=[b"appended"],
    )


@pytest.mark.parametrize(
    "image", [small_elf(), make_bzimage(COMPRESSIONS["zstd"](small_elf()))], ids=["elf", "bz"]
)
def test_a_kernel_is_ready_to_run(image: bytes) -> None:
    ram = FakeRam(MEMORY_BYTES)
    entry = load_64_mib(image, ram)

    assert entry.rip == ENTRY
    assert ram.read(entry.rip, 11) == b"kernel text"
    page = ram.read(entry.rsi, 4096)
    ramdisks = ram.read(header.RAMDISK_IMAGE.read(page), header.RAMDISK_SIZE.read(page))
    assert ramdisks == b"070701" + bytes(2) + b"070702"
    line = ram.read(header.COMMAND_LINE_POINTER.read(page), 2048).split(b"\0")[0]
    assert line == entry.command_line
    assert line == (b"quiet appended virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6")
    assert ram.read(address_map.MP_TABLE, 4) == b"_MP_"
    assert ram.read(address_map.ACPI_RSDP, 8) == b"RSD PTR "


def walk(ram: FakeRam, cr3: int, address: int) -> int:
    """What an address is translated to, as the processor does it (Intel SDM volume 3, 4.5)."""
    table = cr3
    for shift in (39, 30, 21):
        (entry,) = struct.unpack("<Q", ram.read(table + (address >> shift & 0x1FF) * 8, 8))
        assert entry & 3 == 3, "present and writable"
        table = entry & 0x000F_FFFF_FFFF_F000
    assert entry & 0x80, "a large page"
    return table & ~0x1F_FFFF | address & 0x1F_FFFF


@given(st.integers(0, (4 << 30) - 1))
def test_four_gib_are_mapped_one_to_one(address: int) -> None:
    ram = FakeRam(MEMORY_BYTES)
    entry = load_64_mib(small_elf(), ram)
    assert walk(ram, entry.cr3, address) == address


def test_the_selectors_are_flat_64_bit_segments() -> None:
    ram = FakeRam(MEMORY_BYTES)
    entry = load_64_mib(small_elf(), ram)
    gdt = struct.unpack("<4Q", ram.read(entry.gdt_address, entry.gdt_limit + 1))

    code, data = gdt[entry.code_selector // 8], gdt[entry.data_selector // 8]
    assert code >> 40 & 0xFF == 0x9B, "present, ring 0, executable, readable, accessed"
    assert code >> 53 & 1, "64-bit"
    assert data >> 40 & 0xFF == 0x93, "present, ring 0, writable, accessed"


def test_what_the_loader_writes_does_not_overlap() -> None:
    ram = FakeRam(MEMORY_BYTES)
    longest = b"x" * (2047 - 80)
    entry = load_64_mib(small_elf(), ram, command_line=longest)

    page = ram.read(entry.rsi, 4096)
    assert page[0x202:0x206] == b"HdrS"
    assert ram.read(header.COMMAND_LINE_POINTER.read(page), len(longest)) == longest
    assert ram.read(header.SETUP_DATA.read(page) + 8, 4) == b"\x09\0\0\0"
    assert ram.read(address_map.MP_TABLE, 4) == b"_MP_"
    assert ram.read(address_map.ACPI_RSDP, 8) == b"RSD PTR "
    assert entry.rsp < entry.gdt_address


def test_a_jump_to_the_bios_resets_the_machine() -> None:
    ram = FakeRam(MEMORY_BYTES)
    load_64_mib(small_elf(), ram)
    # mov dx, 0x602; mov al, 1; out dx, al; hlt; jmp to the hlt
    assert ram.read(0xFFFF0, 9) == bytes.fromhex("ba0206 b001 ee f4 ebfd")


def test_a_broken_image_is_refused() -> None:
    with pytest.raises(ImageError, match="neither a bzImage"):
        load_64_mib(b"not a kernel")
    with pytest.raises(ImageError, match="command line is"):
        load_64_mib(small_elf(), command_line=b"x" * 2048)


needs_real_kernel = pytest.mark.skipif(
    not REAL_KERNEL.exists(), reason="needs the kernel in ../shared/guest beside the repository"
)


@needs_real_kernel
def test_a_real_kernel_is_loaded() -> None:
    ram = FakeRam(MEMORY_BYTES)
    entry = load_64_mib(REAL_KERNEL.read_bytes(), ram)

    assert 0x100_0000 <= entry.rip < 0x200_0000
    assert b"Linux version 6.12" in ram.read(0x100_0000, 0x200_0000)


@needs_real_kernel
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_truncated_real_kernel_is_refused(data: st.DataObject) -> None:
    image = memoryview(REAL_KERNEL.read_bytes())
    payload_end = (
        (1 + image[0x1F1]) * 512 + header.PAYLOAD_OFFSET.read(image) + header.PAYLOAD_LENGTH.read(image)
    )
    length = data.draw(st.one_of(st.integers(0, 0x400), st.integers(0, payload_end - 1)))
    with pytest.raises(ImageError) as caught:
        load_64_mib(bytes(image[:length]))
    assert caught.value.section == "kernel"


@needs_real_kernel
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 3_000_000), st.integers(0, 7))
def test_a_real_kernel_with_one_bit_flipped_in_its_payload_is_refused(offset: int, bit: int) -> None:
    image = bytearray(REAL_KERNEL.read_bytes())
    start = (1 + image[0x1F1]) * 512 + header.PAYLOAD_OFFSET.read(bytes(image[:0x290]))
    image[start + 10 + offset] ^= 1 << bit
    with pytest.raises(ImageError):
        load_64_mib(bytes(image))
