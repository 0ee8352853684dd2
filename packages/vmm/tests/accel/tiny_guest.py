"""A processor that runs a few bytes of guest code, on a bus that remembers what it was asked."""

import mmap
import struct

from nitro_vmm.accel.unicorn.cpu import Cpu
from nitro_vmm.accel.unicorn.engine import Stopped
from nitro_vmm.address_map import MIB, RamRange
from nitro_vmm.boot import long_mode

MEMORY_BYTES = 4 * MIB
TSC_HZ = 2_500_000_000
CODE = 0x20_0000
HANDLER = 0x20_1000
IDT = 0x20_2000
RESULT = 0x20_3000
STACK = 0x20_8000
HLT = "f4"
STORE_RAX = "48890425 00302000"  # mov [RESULT],rax
INTERRUPT_GATE = 0x8E00
TRAP_GATE_FOR_USERS = 0xEF00


class Ram:
    """One region from 0."""

    def __init__(self) -> None:
        self.buffer = mmap.mmap(-1, MEMORY_BYTES)

    def slice(self, address: int, length: int) -> memoryview:
        return memoryview(self.buffer)[address : address + length]


class RememberingBus:
    """Answers each read with the same number, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.answer = 0x1122_3344_5566_7788

    def read_port(self, port: int, size: int) -> int:
        self.asked.append(("in", port, size))
        return self.answer & (1 << 8 * size) - 1

    def write_port(self, port: int, size: int, value: int) -> None:
        self.asked.append(("out", port, size, value))

    def read_memory(self, address: int, size: int) -> int:
        self.asked.append(("load", address, size))
        return self.answer & (1 << 8 * size) - 1

    def write_memory(self, address: int, size: int, value: int) -> None:
        self.asked.append(("store", address, size, value))

    def write_bytes(self, port: int, data: bytes) -> None:
        self.asked.append(("bytes", port, data))

    def arm_timer(self, ticks: int) -> None:
        self.asked.append(("timer", ticks))


class ChangingBus:
    """Another bus, whose methods a test may replace at any time: the processor looks them up once."""

    def __init__(self, bus: RememberingBus) -> None:
        self._bus = bus

    def read_port(self, port: int, size: int) -> int:
        return self._bus.read_port(port, size)

    def write_port(self, port: int, size: int, value: int) -> None:
        self._bus.write_port(port, size, value)

    def read_memory(self, address: int, size: int) -> int:
        return self._bus.read_memory(address, size)

    def write_memory(self, address: int, size: int, value: int) -> None:
        self._bus.write_memory(address, size, value)

    def write_bytes(self, port: int, data: bytes) -> None:
        self._bus.write_bytes(port, data)

    def arm_timer(self, ticks: int) -> None:
        self._bus.arm_timer(ticks)


class Guest:
    """A processor in 64-bit mode with an IDT that is empty, and some code."""

    def __init__(self, *, tsc_hz: int = TSC_HZ) -> None:
        self.ram = Ram()
        self.bus = RememberingBus()
        self.cpu = Cpu([(RamRange(0, MEMORY_BYTES), self.ram.buffer)], ChangingBus(self.bus), tsc_hz=tsc_hz)
        long_mode.write(self.ram)
        self.ram.slice(IDT_POINTER, 10)[:] = struct.pack("<HQ", 0xFFF, IDT)

    def put(self, address: int, code: str) -> None:
        data = bytes.fromhex(code)
        self.ram.slice(address, len(data))[:] = data

    def gate(self, vector: int, handler: str, *, kind: int = INTERRUPT_GATE) -> None:
        """A handler; the code must load the IDT."""
        address = HANDLER + 0x40 * (vector % 0x20)
        self.put(address, handler)
        gate = struct.pack("<HHHHII", address & 0xFFFF, 0x10, kind, address >> 16, 0, 0)
        self.ram.slice(IDT + 16 * vector, 16)[:] = gate

    def run(self, code: str) -> Stopped:
        self.put(CODE, code)
        self.cpu.enter(long_mode.entry_state(CODE, rsp=STACK, rsi=0x7000))
        return self.cpu.run()

    @property
    def result(self) -> int:
        (value,) = struct.unpack("<Q", self.ram.slice(RESULT, 8))
        assert isinstance(value, int)
        return value


# lidt [IDT_POINTER]: limit 0xFFF, base IDT
IDT_POINTER = 0x20_4000
LIDT = "0f011c25 00402000"
