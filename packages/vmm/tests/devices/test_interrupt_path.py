"""Devices, IO-APIC and local APIC wired as in the machine, and a processor that takes what is pending."""

from functools import partial

import pytest

from nitro_vmm.devices.io_apic import IoApic
from nitro_vmm.devices.io_apic_registers import LEVEL, REDIRECTION_TABLE, REGISTER_SELECT, WINDOW
from nitro_vmm.devices.local_apic import LocalApic
from nitro_vmm.devices.local_apic_registers import Register as ApicRegister
from nitro_vmm.devices.serial import (
    FCR_ENABLE,
    IER_RECEIVED,
    IER_TRANSMITTER_EMPTY,
    IIR_NONE,
    LSR_RECEIVED,
    MCR_OUT2,
    Register,
    Serial,
)

IRQ, VECTOR = 4, 0x41
SPURIOUS = 0xF0
APIC_ENABLED = 0x1FF


class Machine:
    """One serial port on an interrupt, and a handler that does what Linux's 8250 handler does."""

    def __init__(self, trigger: int) -> None:
        self.local_apic = LocalApic(lambda: 0, 1_000_000, lambda: None)
        self.io_apic = IoApic(self.local_apic.accept)
        self.local_apic.end_of_level_interrupt = self.io_apic.end_of_interrupt
        self.out = bytearray()
        self.serial = Serial(self.io_apic.line(IRQ), self.out.extend)
        self.local_apic.write(SPURIOUS, 4, APIC_ENABLED)
        self.io_apic.write(REGISTER_SELECT, 4, REDIRECTION_TABLE + 2 * IRQ)
        self.io_apic.write(WINDOW, 4, trigger | VECTOR)
        self.serial.write(Register.FIFO_CONTROL, 1, FCR_ENABLE)
        self.serial.write(Register.MODEM_CONTROL, 1, MCR_OUT2)
        self.to_send = bytearray()
        self.got = bytearray()
        self.interrupts = 0

    def serve(self) -> None:
        """Take interrupts until none is pending; each handler runs until its device has nothing to say."""
        while (vector := self.local_apic.pending_vector()) is not None:
            assert vector == VECTOR
            self.interrupts += 1
            self.local_apic.acknowledge(vector)
            self.handle()
            self.local_apic.write(ApicRegister.END_OF_INTERRUPT, 4, 0)

    def handle(self) -> None:
        while self.serial.read(Register.INTERRUPT_IDENTIFICATION, 1) & 0x0F != IIR_NONE:
            while self.serial.read(Register.LINE_STATUS, 1) & LSR_RECEIVED:
                self.got.append(self.serial.read(Register.DATA, 1))
            for byte in self.to_send[:16]:
                self.serial.write(Register.DATA, 1, byte)
            del self.to_send[:16]
            if not self.to_send:
                self.serial.write(Register.INTERRUPT_ENABLE, 1, IER_RECEIVED)


@pytest.fixture(params=[0, LEVEL], ids=["edge", "level"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(request.param)


def test_a_long_output_needs_few_interrupts_and_loses_nothing(machine: Machine) -> None:
    machine.to_send[:] = text = bytes(range(256)) * 4

    machine.serial.write(Register.INTERRUPT_ENABLE, 1, IER_RECEIVED | IER_TRANSMITTER_EMPTY)
    machine.serve()

    assert machine.out == text
    assert machine.interrupts <= 2


def test_input_that_comes_at_any_time_arrives(machine: Machine) -> None:
    machine.serial.write(Register.INTERRUPT_ENABLE, 1, IER_RECEIVED)
    lines = [b"one\n", b"two\n", b"three\n"]

    for line in lines:
        machine.serial.receive(line)
        machine.serve()

    assert machine.got == b"".join(lines)
    assert machine.interrupts == len(lines)


@pytest.mark.parametrize("when", ["before the acknowledge", "in the handler", "before the end"])
def test_input_in_the_middle_of_an_interrupt_is_not_lost(machine: Machine, when: str) -> None:
    machine.serial.write(Register.INTERRUPT_ENABLE, 1, IER_RECEIVED)
    machine.serial.receive(b"first ")
    steps = {
        "before the acknowledge": partial(machine.local_apic.acknowledge, VECTOR),
        "in the handler": partial(machine.handle),
        "before the end": partial(machine.local_apic.write, ApicRegister.END_OF_INTERRUPT, 4, 0),
    }

    for name, step in steps.items():
        if name == when:
            machine.serial.receive(b"second")
        step()
    machine.serve()

    assert machine.got == b"first second"


def test_an_interrupt_that_comes_while_the_apic_is_off_is_found_when_it_is_on() -> None:
    machine = Machine(LEVEL)
    machine.local_apic.write(SPURIOUS, 4, 0xFF)
    machine.serial.write(Register.INTERRUPT_ENABLE, 1, IER_RECEIVED)
    machine.serial.receive(b"x")

    machine.local_apic.write(SPURIOUS, 4, APIC_ENABLED)
    machine.io_apic.write(WINDOW, 4, LEVEL | VECTOR)
    machine.serve()

    assert machine.got == b"x"
