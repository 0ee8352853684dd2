"""A guest is told that it is another one than it was."""

from nitro_vmm.address_map import GENERATION_ID
from nitro_vmm.devices.generation_id import GENERATION_ID_BYTES, GenerationId
from nitro_vsock import GuestMemory


def test_the_number_changes_before_the_interrupt_tells_of_it() -> None:
    seen: list[tuple[bool, bytes]] = []
    page = bytearray(0x1000)
    memory = GuestMemory([(GENERATION_ID, memoryview(page))])
    generation = GenerationId(memory, lambda level: seen.append((level, bytes(page[:GENERATION_ID_BYTES]))))
    number = bytes(range(1, 1 + GENERATION_ID_BYTES))

    generation.change(number)

    assert seen == [(True, number), (False, number)]
