"""One connected GDB: answers its packets, and says when the guest is to run (GDB's manual, "Packets").

A session is fed bytes and gives bytes. While the guest runs, only Ctrl-C and the end of the connection are
looked at; `Session.stopped` then tells GDB why the guest has stopped. There is one thread, number 1.
"""

import re
from enum import Enum, auto
from typing import Final, Protocol

from nitro_vmm.gdb.packets import PAYLOAD_BYTES_MAX, Damaged, Decoder, Interrupt, Packet, SendAgain, encode
from nitro_vmm.gdb.registers import REGISTERS, description

SIGINT: Final = 2
SIGTRAP: Final = 5

ERROR: Final = b"E01"
"""The protocol gives the number no meaning."""
UNKNOWN: Final = b""
"""What a stub says to what it does not know."""
BREAKPOINTS_MAX: Final = 1024
READ_BYTES_MAX: Final = (PAYLOAD_BYTES_MAX - 16) // 2

ADDRESS_AND_LENGTH: Final = re.compile(rb"([0-9a-fA-F]{1,16}),([0-9a-fA-F]{1,8})")
BREAKPOINT: Final = re.compile(rb"([01]),([0-9a-fA-F]{1,16}),[0-9a-fA-F]{1,2}")
REGISTER: Final = re.compile(rb"([0-9a-fA-F]{1,4})(?:=([0-9a-fA-F]{1,64}))?")
TRANSFER: Final = re.compile(rb"qXfer:features:read:target\.xml:([0-9a-fA-F]{1,8}),([0-9a-fA-F]{1,8})")


class Target(Protocol):
    """The guest, as a debugger sees it while it stands still."""

    def read_register(self, name: str) -> int:
        """A register of `REGISTERS`."""
        ...

    def write_register(self, name: str, value: int) -> None:
        """Change a writable one."""
        ...

    def read_memory(self, address: int, length: int) -> bytes:
        """Memory by its virtual address; fewer bytes, or none, where nothing is mapped."""
        ...

    def write_memory(self, address: int, data: bytes) -> bool:
        """Change memory; false, and nothing is changed, where not all of it is mapped RAM."""
        ...

    def set_breakpoints(self, addresses: frozenset[int]) -> bool:
        """Stop before each instruction at these virtual addresses; false, if there cannot be as many."""
        ...


class Action(Enum):
    """What is to happen to the guest."""

    CONTINUE = auto()
    """It runs until a breakpoint, or until it is told to stop."""
    STEP = auto()
    """It runs one instruction."""
    STOP = auto()
    """It stands still as soon as it can."""
    DETACH = auto()
    """It runs, and GDB has gone."""
    KILL = auto()
    """It ends."""


class Session:
    """What one GDB wants.

    Args:
        target: Whom it wants it of.
    """

    def __init__(self, target: Target) -> None:
        self.running = False
        """Whether the guest runs, so that GDB waits for the news that it has stopped."""
        self._target = target
        self._decoder = Decoder()
        self._acknowledges = True
        self._last = b""
        self._breakpoints: set[int] = set()
        self._stop_reply = b"T05thread:1;"

    def receive(self, data: bytes) -> tuple[bytes, list[Action]]:
        """Take what GDB sent; returns what to send it, and what is to happen to the guest, in order."""
        answer, actions = bytearray(), []
        for event in self._decoder.feed(data):
            match event:
                case Interrupt():
                    if self.running:
                        actions.append(Action.STOP)
                case SendAgain():
                    answer += self._last if self._acknowledges else b""
                case Damaged():
                    answer += b"-" if self._acknowledges else b""
                case Packet(payload) if not self.running:
                    answer += b"+" if self._acknowledges else b""
                    reply, action = self._obey(payload)
                    if reply is not None:
                        answer += self._packet(reply)
                    if action is not None:
                        actions.append(action)
                        self.running = action in (Action.CONTINUE, Action.STEP)
                    if payload == b"QStartNoAckMode":
                        self._acknowledges = False
                case Packet():  # GDB does not send any while the guest runs
                    answer += b"+" if self._acknowledges else b""
        return bytes(answer), actions

    def stopped(self, *, interrupted: bool) -> bytes:
        """The guest has stopped; returns what to send GDB.

        Args:
            interrupted: Whether it was told to, and did not come to a breakpoint or to the end of a step.
        """
        self.running = False
        kind = b""
        if not interrupted and self._target.read_register("rip") in self._breakpoints:
            kind = b"hwbreak:;"
        number = SIGINT if interrupted else SIGTRAP
        self._stop_reply = b"T%02x%sthread:1;" % (number, kind)
        return self._packet(self._stop_reply)

    def ended(self) -> bytes:
        """The guest has ended; returns what to send GDB, if it waits for news."""
        return self._packet(b"W00") if self.running else b""

    def _packet(self, payload: bytes) -> bytes:
        self._last = encode(payload)
        return self._last

    def _obey(self, payload: bytes) -> tuple[bytes | None, Action | None]:
        """The answer to a packet, if it has one now, and what is to happen."""
        match payload[:1]:
            case b"?":
                return self._stop_reply, None
            case b"c" | b"C" | b"s" | b"S":
                return self._resume(payload)
            case b"D":
                self._forget_breakpoints()
                return b"OK", Action.DETACH
            case b"k":
                return None, Action.KILL
            case b"v":
                return self._obey_v(payload)
            case b"H" | b"T":
                return b"OK", None
            case _:
                return self._answer(payload), None

    def _obey_v(self, payload: bytes) -> tuple[bytes | None, Action | None]:
        if payload == b"vCont?":
            return b"vCont;c;C;s;S", None
        if payload.startswith(b"vCont;"):
            # There is one thread, so the first action is for it.
            return self._resume(payload.removeprefix(b"vCont;"))
        if payload.startswith(b"vKill"):
            return b"OK", Action.KILL
        return UNKNOWN, None

    def _resume(self, payload: bytes) -> tuple[bytes | None, Action | None]:
        # An address to go on from, or a signal, may follow; GDB sends neither to a machine.
        match payload[:1].lower():
            case b"c":
                return None, Action.CONTINUE
            case b"s":
                return None, Action.STEP
        return ERROR, None

    def _answer(self, payload: bytes) -> bytes:
        match payload[:1]:
            case b"g":
                return b"".join(self._hex(number) for number in range(len(REGISTERS)))
            case b"p":
                return self._read_register(payload[1:])
            case b"P":
                return self._write_register(payload[1:])
            case b"m":
                return self._read_memory(payload[1:])
            case b"M" | b"X":
                return self._write_memory(payload)
            case b"Z" | b"z":
                return self._change_breakpoint(payload)
            case b"q" | b"Q":
                return self._query(payload)
        return UNKNOWN

    def _query(self, payload: bytes) -> bytes:
        if payload.startswith(b"qSupported"):
            return b"PacketSize=%x;qXfer:features:read+;QStartNoAckMode+;vContSupported+;hwbreak+" % (
                PAYLOAD_BYTES_MAX
            )
        if match := TRANSFER.fullmatch(payload):
            offset, length = int(match[1], 16), min(int(match[2], 16), PAYLOAD_BYTES_MAX // 2)
            piece = description()[offset : offset + length]
            more = offset + length < len(description())
            return (b"m" if more else b"l") + piece
        known = {
            b"QStartNoAckMode": b"OK",
            b"qAttached": b"1",
            b"qC": b"QC1",
            b"qfThreadInfo": b"m1",
            b"qsThreadInfo": b"l",
        }
        return known.get(payload.partition(b":")[0], UNKNOWN)

    def _hex(self, number: int) -> bytes:
        register = REGISTERS[number]
        value = self._target.read_register(register.name) & (1 << register.bits) - 1
        return value.to_bytes(register.size, "little").hex().encode()

    def _read_register(self, text: bytes) -> bytes:
        match = REGISTER.fullmatch(text)
        if match is None or match[2] is not None or int(match[1], 16) >= len(REGISTERS):
            return ERROR
        return self._hex(int(match[1], 16))

    def _write_register(self, text: bytes) -> bytes:
        match = REGISTER.fullmatch(text)
        if match is None or match[2] is None or int(match[1], 16) >= len(REGISTERS):
            return ERROR
        register = REGISTERS[int(match[1], 16)]
        if not register.writable or len(match[2]) != 2 * register.size:
            return ERROR
        self._target.write_register(register.name, int.from_bytes(bytes.fromhex(match[2].decode()), "little"))
        return b"OK"

    def _read_memory(self, text: bytes) -> bytes:
        match = ADDRESS_AND_LENGTH.fullmatch(text)
        if match is None:
            return ERROR
        data = self._target.read_memory(int(match[1], 16), min(int(match[2], 16), READ_BYTES_MAX))
        return data.hex().encode() if data or not int(match[2], 16) else ERROR

    def _write_memory(self, payload: bytes) -> bytes:
        place, separator, data = payload[1:].partition(b":")
        match = ADDRESS_AND_LENGTH.fullmatch(place)
        if match is None or not separator:
            return ERROR
        if payload[:1] == b"M":
            try:
                data = bytes.fromhex(data.decode("ascii"))
            except ValueError:
                return ERROR
        if len(data) != int(match[2], 16):
            return ERROR
        return b"OK" if not data or self._target.write_memory(int(match[1], 16), data) else ERROR

    def _change_breakpoint(self, payload: bytes) -> bytes:
        match = BREAKPOINT.fullmatch(payload[1:])
        if match is None:  # a watchpoint, or conditions
            return UNKNOWN
        address = int(match[2], 16)
        if payload[:1] == b"z":
            self._breakpoints.discard(address)
            self._target.set_breakpoints(frozenset(self._breakpoints))
            return b"OK"
        wanted = self._breakpoints | {address}
        if len(wanted) > BREAKPOINTS_MAX or not self._target.set_breakpoints(frozenset(wanted)):
            return ERROR
        self._breakpoints = wanted
        return b"OK"

    def _forget_breakpoints(self) -> None:
        self._breakpoints.clear()
        self._target.set_breakpoints(frozenset())
