"""The PC's keyboard controller, without keyboard and mouse. Linux resets a PC through it (``reboot=k``).

Source: the command set of the IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device Controller". A
driver that looks for devices waits half a second for each answer that does not come, so every question gets
an answer here. A byte for the keyboard or the mouse is answered with "resend" and the time-out bit, as on a
board where nothing is plugged in. The test of the mouse's port answers that its clock line is stuck.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from nitro_vmm.devices.state import require, require_bytes, require_whole

DATA: Final = 0
COMMAND: Final = 4
"""Offsets from port 0x60; the command port reads as the status."""

STATUS_OUTPUT_FULL: Final = 0x01
STATUS_SELF_TEST_PASSED: Final = 0x04
STATUS_COMMAND: Final = 0x08
STATUS_NOT_LOCKED: Final = 0x10
STATUS_FROM_MOUSE: Final = 0x20
STATUS_TIMEOUT: Final = 0x40

CONFIG_KEYBOARD_INTERRUPT: Final = 0x01
CONFIG_SELF_TEST_PASSED: Final = 0x04
CONFIG_KEYBOARD_DISABLED: Final = 0x10
CONFIG_MOUSE_DISABLED: Final = 0x20
CONFIG_TRANSLATE: Final = 0x40

RESEND: Final = 0xFE

READ_MEMORY: Final = 0x20
WRITE_MEMORY: Final = 0x60
DISABLE_MOUSE: Final = 0xA7
ENABLE_MOUSE: Final = 0xA8
TEST_MOUSE_PORT: Final = 0xA9
SELF_TEST: Final = 0xAA
TEST_KEYBOARD_PORT: Final = 0xAB
DISABLE_KEYBOARD: Final = 0xAD
ENABLE_KEYBOARD: Final = 0xAE
READ_INPUT_PORT: Final = 0xC0
READ_OUTPUT_PORT: Final = 0xD0
WRITE_OUTPUT_PORT: Final = 0xD1
ECHO_AS_KEYBOARD: Final = 0xD2
ECHO_AS_MOUSE: Final = 0xD3
WRITE_TO_MOUSE: Final = 0xD4
READ_TEST_INPUTS: Final = 0xE0
PULSE_OUTPUT_PORT: Final = 0xF0
RESET: Final = 0xFE
"""The pulse on the processor's reset line, one of those that start at `PULSE_OUTPUT_PORT`."""

ANSWERS: Final = {
    TEST_MOUSE_PORT: 0x01,
    SELF_TEST: 0x55,
    TEST_KEYBOARD_PORT: 0x00,
    READ_INPUT_PORT: 0x80,
    READ_OUTPUT_PORT: 0x03,
    READ_TEST_INPUTS: 0x00,
}
TAKING_A_BYTE: Final = (WRITE_OUTPUT_PORT, ECHO_AS_KEYBOARD, ECHO_AS_MOUSE, WRITE_TO_MOUSE)
"""Commands whose parameter follows at the data port; so do those that write the controller's memory."""

MEMORY_BYTES: Final = 32
"""Byte 0 is the configuration."""


class I8042State(NamedTuple):
    """The controller as a guest left it."""

    memory: bytes
    """The controller's memory, `MEMORY_BYTES` long."""
    output: int
    """The byte at the data port, read already or not."""
    status: int
    """The status register."""
    expecting: int | None
    """The command whose parameter comes next at the data port; `None` when the next byte is a device's."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        require_bytes(self, "memory", MEMORY_BYTES, least=MEMORY_BYTES)
        require_whole(self, output=0xFF, status=0xFF)
        require(
            self,
            "expecting",
            self.expecting is None or _takes_a_byte(self.expecting),
            "a command with a parameter",
        )


def _takes_a_byte(command: int) -> bool:
    return command in TAKING_A_BYTE or command in range(WRITE_MEMORY, WRITE_MEMORY + MEMORY_BYTES)


class I8042:
    """The two ports at 0x60 and 0x64.

    Args:
        reset: Called when the guest pulls the processor's reset line.
        line: The keyboard's interrupt line.
    """

    def __init__(self, reset: Callable[[], None], line: Callable[[bool], None] = lambda _level: None) -> None:
        self._reset = reset
        self._line = line
        self._memory = bytearray(MEMORY_BYTES)
        self._memory[0] = CONFIG_SELF_TEST_PASSED | CONFIG_TRANSLATE
        self._output = 0
        self._status = STATUS_NOT_LOCKED | STATUS_SELF_TEST_PASSED
        self._expecting: int | None = None

    def state(self) -> I8042State:
        """What to save so that `restore` goes on from here."""
        return I8042State(bytes(self._memory), self._output, self._status, self._expecting)

    def restore(self, state: I8042State) -> None:
        """Go on from a saved state, and drive the interrupt line accordingly."""
        self._memory[:] = state.memory
        self._output = state.output
        self._status = state.status
        self._expecting = state.expecting
        self._update()

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - the ports are bytes
        """Read the status at `COMMAND`, or the output byte at `DATA`."""
        if offset == COMMAND:
            return self._status
        if offset != DATA:
            return 0xFF
        self._status &= ~(STATUS_OUTPUT_FULL | STATUS_FROM_MOUSE | STATUS_TIMEOUT)
        self._update()
        return self._output

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002 - the ports are bytes
        """Write a command at `COMMAND`, or at `DATA` its parameter or a byte for the keyboard."""
        value &= 0xFF
        if offset == COMMAND:
            self._status |= STATUS_COMMAND
            self._command(value)
        elif offset == DATA:
            self._status &= ~STATUS_COMMAND
            expecting, self._expecting = self._expecting, None
            self._take(expecting, value)

    def _command(self, command: int) -> None:
        self._expecting = None
        if command & 0xE0 == READ_MEMORY:
            self._answer(self._memory[command & 0x1F])
        elif _takes_a_byte(command):
            self._expecting = command
        elif command in ANSWERS:
            self._answer(ANSWERS[command])
        elif command == DISABLE_MOUSE:
            self._memory[0] |= CONFIG_MOUSE_DISABLED
        elif command == ENABLE_MOUSE:
            self._memory[0] &= ~CONFIG_MOUSE_DISABLED
        elif command == DISABLE_KEYBOARD:
            self._memory[0] |= CONFIG_KEYBOARD_DISABLED
        elif command == ENABLE_KEYBOARD:
            self._memory[0] &= ~CONFIG_KEYBOARD_DISABLED
        elif command >= PULSE_OUTPUT_PORT and not command & 1:
            self._reset()

    def _take(self, command: int | None, value: int) -> None:
        if command is None:
            self._answer(RESEND, STATUS_TIMEOUT)
        elif command == WRITE_TO_MOUSE:
            self._answer(RESEND, STATUS_TIMEOUT | STATUS_FROM_MOUSE)
        elif command == WRITE_OUTPUT_PORT:
            if not value & 1:
                self._reset()
        elif command in (ECHO_AS_KEYBOARD, ECHO_AS_MOUSE):
            # Linux tests for a mouse's port with an echo "as from the mouse". The answer comes without that
            # mark, which tells it at once that there is no such port.
            self._answer(value)
        else:
            self._memory[command & 0x1F] = value
            self._update()

    def _answer(self, value: int, status: int = 0) -> None:
        self._output = value
        self._status = self._status & ~(STATUS_FROM_MOUSE | STATUS_TIMEOUT) | STATUS_OUTPUT_FULL | status
        self._update()

    def _update(self) -> None:
        wanted = self._memory[0] & CONFIG_KEYBOARD_INTERRUPT
        full = self._status & (STATUS_OUTPUT_FULL | STATUS_FROM_MOUSE) == STATUS_OUTPUT_FULL
        self._line(bool(wanted and full))
