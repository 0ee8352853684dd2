"""A guest made of a dictionary and a piece of memory, and a body for tests and for the fuzzer."""

from nitro_vmm.gdb.packets import Decoder, Packet, SendAgain
from nitro_vmm.gdb.registers import REGISTERS
from nitro_vmm.gdb.session import Session

BASE = 0xFFFF_FFFF_8100_0000
MEMORY_BYTES = 4096


class FakeTarget:
    def __init__(self) -> None:
        self.registers = {register.name: number for number, register in enumerate(REGISTERS)}
        self.memory = bytearray(range(256)) * (MEMORY_BYTES // 256)
        self.breakpoints: frozenset[int] = frozenset()
        self.breakpoints_max = 10_000

    def read_register(self, name: str) -> int:
        return self.registers[name]

    def write_register(self, name: str, value: int) -> None:
        self.registers[name] = value

    def read_memory(self, address: int, length: int) -> bytes:
        offset = address - BASE
        return bytes(self.memory[offset : offset + length]) if 0 <= offset < MEMORY_BYTES else b""

    def write_memory(self, address: int, data: bytes) -> bool:
        offset = address - BASE
        if offset < 0 or offset + len(data) > MEMORY_BYTES:
            return False
        self.memory[offset : offset + len(data)] = data
        return True

    def set_breakpoints(self, addresses: frozenset[int]) -> bool:
        self.breakpoints = addresses if len(addresses) <= self.breakpoints_max else self.breakpoints
        return self.breakpoints == addresses


def check_any_bytes(data: bytes, sizes: list[int]) -> None:
    """Whatever comes, in pieces of whatever size: there is no error, and every answer is made of packets."""
    target = FakeTarget()
    session = Session(target)
    position = 0
    for size in [*sizes, len(data)]:
        answer, _ = session.receive(data[position : position + size])
        position += size
        if session.running:
            answer += session.stopped(interrupted=bool(size % 2))
        # A minus asks for the packet once more, which came damaged.
        events = Decoder().feed(answer)
        assert all(isinstance(event, Packet | SendAgain) for event in events), answer
    assert len(target.memory) == MEMORY_BYTES
