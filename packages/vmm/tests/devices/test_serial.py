"""The serial port, driven as Linux's 8250 driver does it and as nobody should."""

from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.devices.serial import (
    FCR_CLEAR_RECEIVED,
    FCR_ENABLE,
    IER_LINE_STATUS,
    IER_MODEM_STATUS,
    IER_RECEIVED,
    IER_TRANSMITTER_EMPTY,
    IIR_FIFOS_ENABLED,
    IIR_LINE_STATUS,
    IIR_MODEM_STATUS,
    IIR_NONE,
    IIR_RECEIVED,
    IIR_RECEIVED_TIMEOUT,
    IIR_TRANSMITTER_EMPTY,
    LCR_DLAB,
    LSR_OVERRUN,
    LSR_RECEIVED,
    LSR_TRANSMITTER_EMPTY,
    MCR_DTR,
    MCR_LOOPBACK,
    MCR_OUT1,
    MCR_OUT2,
    MCR_RTS,
    MSR_CONNECTED,
    MSR_CTS,
    MSR_DCD,
    Register,
    Serial,
)

# The bounds as they are promised, so that those of the program are held against them.
INPUT_BYTES_MAX = 1024


class Bench:
    """A port, its line's history and what came out."""

    def __init__(self) -> None:
        self.levels: list[bool] = []
        self.out = b""
        self.ready = 0
        self.port = Serial(self.levels.append, self._transmit, self._ready)

    def _transmit(self, data: bytes) -> None:
        self.out += data

    def _ready(self) -> None:
        self.ready += 1

    def put(self, register: Register, value: int) -> None:
        self.port.write(register, 1, value)

    def get(self, register: Register) -> int:
        return self.port.read(register, 1)

    def read_all(self) -> bytes:
        data = bytearray()
        while self.get(Register.LINE_STATUS) & LSR_RECEIVED:
            data.append(self.get(Register.DATA))
        return bytes(data)


def opened() -> Bench:
    """A port as an open terminal leaves it."""
    bench = Bench()
    bench.put(Register.INTERRUPT_ENABLE, IER_RECEIVED)
    bench.put(Register.FIFO_CONTROL, FCR_ENABLE)
    bench.put(Register.MODEM_CONTROL, MCR_DTR | MCR_OUT2)
    return bench


def test_bytes_leave_at_once() -> None:
    bench = Bench()

    for byte in b"hello\n":
        assert bench.get(Register.LINE_STATUS) == LSR_TRANSMITTER_EMPTY
        bench.put(Register.DATA, byte)

    assert bench.out == b"hello\n"
    assert bench.levels == []


def test_linux_recognises_a_16550a() -> None:
    bench = Bench()

    bench.put(Register.INTERRUPT_ENABLE, 0)
    assert bench.get(Register.INTERRUPT_ENABLE) == 0
    bench.put(Register.INTERRUPT_ENABLE, 0xFF)
    assert bench.get(Register.INTERRUPT_ENABLE) == 0x0F
    bench.put(Register.INTERRUPT_ENABLE, 0)
    bench.put(Register.MODEM_CONTROL, MCR_LOOPBACK | MCR_OUT2 | MCR_RTS)
    assert bench.get(Register.MODEM_STATUS) & 0xF0 == MSR_DCD | MSR_CTS
    bench.put(Register.MODEM_CONTROL, 0)
    bench.put(Register.FIFO_CONTROL, FCR_ENABLE)
    assert bench.get(Register.INTERRUPT_IDENTIFICATION) == IIR_FIFOS_ENABLED | IIR_NONE
    bench.put(Register.SCRATCH, 0xA5)
    assert bench.get(Register.SCRATCH) == 0xA5
    bench.put(Register.FIFO_CONTROL, 0)
    assert bench.get(Register.INTERRUPT_IDENTIFICATION) == IIR_NONE


def test_the_divisor_hides_behind_dlab() -> None:
    bench = Bench()
    bench.put(Register.LINE_CONTROL, LCR_DLAB | 3)
    bench.put(Register.DATA, 0x01)
    bench.put(Register.INTERRUPT_ENABLE, 0x0C)
    assert (bench.get(Register.DATA), bench.get(Register.INTERRUPT_ENABLE)) == (0x01, 0x0C)

    bench.put(Register.LINE_CONTROL, 3)

    assert bench.get(Register.LINE_CONTROL) == 3
    assert bench.get(Register.INTERRUPT_ENABLE) == 0
    assert bench.out == b""


def test_enabling_the_transmitter_interrupt_raises_it_each_time() -> None:
    bench = opened()
    for _ in range(2):
        bench.put(Register.INTERRUPT_ENABLE, IER_TRANSMITTER_EMPTY)
        assert bench.get(Register.INTERRUPT_IDENTIFICATION) == IIR_FIFOS_ENABLED | IIR_TRANSMITTER_EMPTY
        assert bench.get(Register.INTERRUPT_IDENTIFICATION) == IIR_FIFOS_ENABLED | IIR_NONE
        bench.put(Register.INTERRUPT_ENABLE, 0)

    assert bench.levels == [True, False, True, False]


def test_writing_data_raises_the_transmitter_interrupt_again() -> None:
    bench = opened()
    bench.put(Register.INTERRUPT_ENABLE, IER_TRANSMITTER_EMPTY)
    bench.get(Register.INTERRUPT_IDENTIFICATION)

    bench.put(Register.DATA, 0x41)
    bench.put(Register.DATA, 0x42)

    assert bench.levels == [True, False, True]
    bench.put(Register.INTERRUPT_ENABLE, 0)
    assert bench.levels == [True, False, True, False]


def test_input_interrupts_until_it_is_read() -> None:
    bench = opened()
    bench.put(Register.INTERRUPT_ENABLE, IER_RECEIVED)

    assert bench.port.receive(b"ls\n") == 3
    assert bench.levels == [True]
    assert bench.get(Register.INTERRUPT_IDENTIFICATION) == IIR_FIFOS_ENABLED | IIR_RECEIVED
    assert bench.read_all() == b"ls\n"
    assert bench.levels == [True, False]
    assert bench.get(Register.DATA) == 0


def test_input_below_the_trigger_counts_as_a_timeout() -> None:
    bench = opened()
    bench.put(Register.FIFO_CONTROL, FCR_ENABLE | 0x80)
    bench.put(Register.INTERRUPT_ENABLE, IER_RECEIVED)

    bench.port.receive(b"1234567")
    assert bench.get(Register.INTERRUPT_IDENTIFICATION) & 0x0F == IIR_RECEIVED_TIMEOUT
    bench.port.receive(b"8")
    assert bench.get(Register.INTERRUPT_IDENTIFICATION) & 0x0F == IIR_RECEIVED


def test_input_comes_before_output_in_urgency() -> None:
    bench = opened()
    bench.put(Register.INTERRUPT_ENABLE, IER_RECEIVED | IER_TRANSMITTER_EMPTY)
    bench.port.receive(b"x")

    assert bench.get(Register.INTERRUPT_IDENTIFICATION) & 0x0F == IIR_RECEIVED
    bench.read_all()
    assert bench.get(Register.INTERRUPT_IDENTIFICATION) & 0x0F == IIR_TRANSMITTER_EMPTY
    assert bench.levels == [True, False]


def test_input_is_refused_until_a_terminal_is_open() -> None:
    bench = Bench()
    assert bench.port.receive(b"early") == 0
    bench.put(Register.MODEM_CONTROL, MCR_DTR)
    bench.put(Register.INTERRUPT_ENABLE, 0x0F)
    bench.put(Register.INTERRUPT_ENABLE, 0)
    bench.put(Register.FIFO_CONTROL, FCR_ENABLE | FCR_CLEAR_RECEIVED)
    bench.put(Register.FIFO_CONTROL, 0)
    bench.put(Register.MODEM_CONTROL, MCR_DTR | MCR_OUT2)
    assert bench.ready == 0

    bench.put(Register.INTERRUPT_ENABLE, IER_RECEIVED)
    assert bench.ready == 1
    assert bench.port.receive(b"early") == 5
    bench.put(Register.FIFO_CONTROL, FCR_ENABLE)
    assert bench.read_all() == b"early"


def test_the_queue_is_bounded_and_says_when_it_has_room() -> None:
    bench = opened()
    assert bench.port.receive(bytes(INPUT_BYTES_MAX + 10)) == INPUT_BYTES_MAX
    assert bench.ready == 0

    assert bench.read_all() == bytes(INPUT_BYTES_MAX)
    assert bench.ready == 1
    bench.port.receive(b"x")
    bench.read_all()
    assert bench.ready == 1


def test_the_guest_can_throw_input_away() -> None:
    bench = opened()
    bench.put(Register.INTERRUPT_ENABLE, IER_RECEIVED)
    bench.port.receive(b"junk")

    bench.put(Register.FIFO_CONTROL, FCR_ENABLE | FCR_CLEAR_RECEIVED)

    assert bench.read_all() == b""
    assert bench.levels == [True, False]


def test_loopback_sends_to_itself_and_overruns() -> None:
    bench = Bench()
    bench.put(Register.MODEM_CONTROL, MCR_LOOPBACK)
    bench.put(Register.INTERRUPT_ENABLE, IER_LINE_STATUS)
    for _ in range(INPUT_BYTES_MAX + 1):
        bench.put(Register.DATA, 0x55)

    assert bench.out == b""
    assert bench.get(Register.INTERRUPT_IDENTIFICATION) == IIR_LINE_STATUS
    assert bench.get(Register.LINE_STATUS) & LSR_OVERRUN
    assert not bench.get(Register.LINE_STATUS) & LSR_OVERRUN
    assert bench.levels == [True, False]
    assert bench.read_all() == b"\x55" * INPUT_BYTES_MAX


def test_an_overrun_interrupts_only_where_line_status_may() -> None:
    bench = Bench()
    bench.put(Register.INTERRUPT_ENABLE, IER_MODEM_STATUS)
    bench.put(Register.MODEM_CONTROL, MCR_LOOPBACK)
    bench.get(Register.MODEM_STATUS)
    for _ in range(INPUT_BYTES_MAX + 1):
        bench.put(Register.DATA, 0)
    assert bench.get(Register.INTERRUPT_IDENTIFICATION) == IIR_NONE

    bench.put(Register.INTERRUPT_ENABLE, IER_LINE_STATUS)

    assert bench.get(Register.INTERRUPT_IDENTIFICATION) == IIR_LINE_STATUS


def test_modem_status_tells_changes_once() -> None:
    bench = Bench()
    assert bench.get(Register.MODEM_STATUS) == MSR_CONNECTED
    bench.put(Register.INTERRUPT_ENABLE, IER_MODEM_STATUS)

    bench.put(Register.MODEM_CONTROL, MCR_LOOPBACK | MCR_OUT1)

    assert bench.get(Register.INTERRUPT_IDENTIFICATION) == IIR_MODEM_STATUS
    assert bench.get(Register.MODEM_STATUS) == 0x40 | MSR_CONNECTED >> 4
    assert bench.get(Register.MODEM_STATUS) == 0x40
    bench.put(Register.MODEM_CONTROL, MCR_LOOPBACK)
    assert bench.get(Register.MODEM_STATUS) == 0x04
    assert bench.levels == [True, False, True, False]


def test_the_status_registers_cannot_be_written() -> None:
    bench = Bench()

    bench.put(Register.LINE_STATUS, 0)
    bench.put(Register.MODEM_STATUS, 0)

    assert bench.get(Register.LINE_STATUS) == LSR_TRANSMITTER_EMPTY
    assert bench.get(Register.MODEM_STATUS) == MSR_CONNECTED


operations = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))
    | st.binary(max_size=40),
    max_size=80,
)


@given(operations)
def test_no_sequence_of_accesses_raises_and_the_line_tells_the_truth(
    sequence: list[tuple[int, int, int] | bytes],
) -> None:
    bench = Bench()
    for operation in sequence:
        if isinstance(operation, bytes):
            assert bench.port.receive(operation) <= len(operation)
        else:
            bench.port.write(*operation)
            assert 0 <= bench.port.read(operation[0], operation[1]) <= 0xFF
    level = bench.levels[-1] if bench.levels else False
    assert level == (bench.get(Register.INTERRUPT_IDENTIFICATION) & 0x0F != IIR_NONE)
