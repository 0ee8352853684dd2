import struct

from nitro_vmm import address_map
from nitro_vmm.boot import mp_table

SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def entries(table: bytes) -> list[bytes]:
    (count,) = struct.unpack_from("<H", table, 16 + 34)
    found, position = [], 16 + 44
    for _ in range(count):
        size = SIZES[table[position]]
        found.append(table[position : position + size])
        position += size
    assert position == len(table)
    return found


def test_the_floating_pointer_points_behind_itself_and_adds_up() -> None:
    table = mp_table.build(())

    assert table[:4] == b"_MP_"
    assert struct.unpack_from("<I", table, 4) == (address_map.MP_TABLE + 16,)
    assert table[8:10] == b"\x01\x04"
    assert sum(table[:16]) % 256 == 0


def test_the_configuration_table_says_its_length_and_adds_up() -> None:
    table = mp_table.build(())

    assert table[16:20] == b"PCMP"
    assert struct.unpack_from("<H", table, 20) == (len(table) - 16,)
    assert sum(table[16:]) % 256 == 0
    assert struct.unpack_from("<I", table, 16 + 36) == (address_map.LOCAL_APIC,)


def test_it_fits_the_last_kilobyte_of_base_memory() -> None:
    assert address_map.MP_TABLE + len(mp_table.build(())) <= 0xA0000


def test_there_is_one_boot_processor_and_one_io_apic() -> None:
    found = entries(mp_table.build(()))

    assert [entry[1:4] for entry in found if entry[0] == 0] == [bytes([address_map.LOCAL_APIC_ID, 0x14, 3])]
    assert [struct.unpack("<BBBBI", entry) for entry in found if entry[0] == 2] == [
        (2, address_map.IO_APIC_ID, 0x11, 1, address_map.IO_APIC)
    ]


def test_interrupts_are_one_to_one_and_virtio_ones_level_triggered() -> None:
    pins = [struct.unpack("<BBHBBBB", entry) for entry in entries(mp_table.build({5, 6})) if entry[0] == 3]

    assert [(pin[4], pin[6]) for pin in pins] == [(number, number) for number in range(24)]
    assert {pin[4] for pin in pins if pin[2] == 0b1101} == {5, 6}
    assert {pin[2] for pin in pins} == {0, 0b1101}
    assert {pin[5] for pin in pins} == {address_map.IO_APIC_ID}


def test_each_processor_has_an_id_of_its_own_and_the_first_one_boots() -> None:
    found = [entry for entry in entries(mp_table.build((), processors=4)) if entry[0] == 0]

    assert [(entry[1], entry[3]) for entry in found] == [(0, 3), (1, 1), (2, 1), (3, 1)]


def test_the_most_processors_fit_the_last_kilobyte_and_none_has_the_io_apics_id() -> None:
    table = mp_table.build((), processors=address_map.PROCESSORS_MAX)

    assert address_map.MP_TABLE + len(table) <= 0xA0000
    assert address_map.IO_APIC_ID not in [entry[1] for entry in entries(table) if entry[0] == 0]
