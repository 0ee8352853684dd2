"""One guest in a process of its own, and the verdict on that process.

The process runs the guest for a moment, asks the machine to stop, and must then end soon. It is watched from
outside, because one whose interpreter is stuck can tell nobody.
"""

import contextlib
import faulthandler
import logging
import os
import resource
import select
import signal
import socket  # noqa: TC003 - mypy and readers
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, Final

from machine_fuzz import guest as layout
from machine_fuzz.guest import Guest
from nitro_nsm import Nsm, NsmConfig
from nitro_vmm.accel import EntryState, open_accelerator
from nitro_vmm.address_map import BOOT_PAGE_TABLES
from nitro_vmm.boot import long_mode
from nitro_vmm.devices.nsm import NsmDevice
from nitro_vmm.devices.vsock import VsockDevice
from nitro_vmm.machine.machine import Ending, Machine
from nitro_vmm.machine.memory import Memory
from nitro_vsock import VsockConfig, VsockEngine

RUN_S: Final = 0.03
"""How long a guest may run before it is stopped."""
STOP_S: Final = 10.0
"""How long the stop may take; a second is promised, and machines that test are busy."""
DEAF_S: Final = 20.0
"""After this the process does not even run Python any more."""
RESIDENT_MIB_MAX: Final = 300
"""How much the process may have grown beyond what it began with."""
CONNECTIONS, PORT = 3, 9000
"""How many connections the parent opens, to this guest port and the next ones."""
UNSTOPPABLE, FAILED = 90, 91

ACCELERATOR: Final = os.environ.get("NITRO_VMM_ACCELERATOR", "unicorn")

open_accelerator(ACCELERATOR)  # its library is loaded once, here, and not in every child


class Verdict(StrEnum):
    """What became of a guest's process."""

    ENDED = "ended"
    """The guest ended by itself."""
    STOPPED = "stopped"
    """It ran until it was stopped."""
    ABORT = "abort"
    SIGNAL = "signal"
    TRACEBACK = "traceback"
    UNSTOPPABLE = "unstoppable"
    """It went on after it was stopped."""
    DEAF = "deaf"
    """Its interpreter is stuck for ever."""
    MEMORY = "memory"

    @property
    def good(self) -> bool:
        """Whether it is as it should be."""
        return self in {Verdict.ENDED, Verdict.STOPPED}


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one guest."""

    verdict: Verdict
    details: str
    resident_mib: int


def run(guest: Guest, *, run_s: float = RUN_S, stop_s: float = STOP_S) -> Trial:
    """Run a guest."""
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if not child:
            _child(guest, errors, write_end, run_s=run_s, stop_s=stop_s)
        os.close(write_end)
        heard = select.select([read_end], [], [], run_s + stop_s + DEAF_S)[0]
        said = os.read(read_end, 4096).decode() if heard else ""
        os.close(read_end)
        if not heard:
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        errors.seek(0)
        text = errors.read()
    grown_mib = usage.ru_maxrss // 1024 - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    code = os.waitstatus_to_exitcode(status)
    if not heard:
        return Trial(Verdict.DEAF, text[-2000:], grown_mib)
    if code < 0:
        name = signal.Signals(-code).name
        return Trial(
            Verdict.ABORT if name == "SIGABRT" else Verdict.SIGNAL, f"{name} {text[-2000:]}", grown_mib
        )
    if code == UNSTOPPABLE:
        return Trial(Verdict.UNSTOPPABLE, text[-2000:], grown_mib)
    if code or text:
        return Trial(Verdict.TRACEBACK, f"exit code {code} {text[-2000:]}", grown_mib)
    if grown_mib > RESIDENT_MIB_MAX:
        return Trial(Verdict.MEMORY, f"{grown_mib} MiB more", grown_mib)
    return Trial(Verdict.STOPPED if said == "was stopped" else Verdict.ENDED, said, grown_mib)


def _child(guest: Guest, errors: IO[str], pipe: int, *, run_s: float, stop_s: float) -> None:
    """Never returns."""
    try:
        os.dup2(errors.fileno(), 2)
        faulthandler.enable(errors.fileno())
        logging.disable()
        endings: list[Ending] = []
        machine, entry, vsock, engine = _assemble(guest)
        thread = threading.Thread(target=lambda: endings.append(machine.run(entry)), daemon=True)
        thread.start()
        parent = _Parent(machine, vsock, engine)
        _wait(thread, run_s, parent.act)
        machine.stop()
        _wait(thread, stop_s, vsock.turn)
        if thread.is_alive():
            os._exit(UNSTOPPABLE)
        os.write(pipe, (endings[0].end.value if endings else "").encode())
        os._exit(0 if endings else FAILED)
    except BaseException:
        logging.disable(logging.NOTSET)
        logging.getLogger().exception("the machine's own code failed")
        raise
    finally:
        os._exit(FAILED)


class _Parent:
    """What a guest has to do with from outside: connections, their data, and what is typed.

    Args:
        machine: The guest's.
        vsock: Its vsock device.
        engine: What is behind that.
    """

    def __init__(self, machine: Machine, vsock: VsockDevice, engine: VsockEngine) -> None:
        self._machine = machine
        self._vsock = vsock
        self._engine = engine
        self._sockets: list[socket.socket] = []

    def act(self) -> None:
        """Move data; type a little; and connect, write, and end a connection, one at a time."""
        self._vsock.turn()
        self._machine.type(b"typed\r\x03")
        if len(self._sockets) < CONNECTIONS:
            self._sockets.append(self._engine.connect(PORT + len(self._sockets)))
            self._sockets[-1].setblocking(False)
            with contextlib.suppress(OSError):
                self._sockets[-1].send(b"hello" * 100)
        elif self._sockets[0].fileno() >= 0:
            self._sockets[0].close()


def _wait(thread: threading.Thread, seconds: float, turn: Callable[[], object]) -> None:
    """Wait for the machine's end, and move its vsock data meanwhile."""
    until = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < until:
        turn()
        thread.join(0.005)


def _assemble(guest: Guest) -> tuple[Machine, EntryState, VsockDevice, VsockEngine]:
    memory = Memory(layout.MEMORY_BYTES)
    machine = Machine(
        memory, open_accelerator(ACCELERATOR), console=lambda _: None, console_ready=lambda: None
    )
    machine.add_virtio("nsm", NsmDevice(Nsm(NsmConfig()), memory.guest))
    engine = VsockEngine(VsockConfig(guest_cid=16, seqpacket=True))
    vsock = VsockDevice(engine, memory.guest, locked=machine.locked)
    machine.add_virtio("vsock", vsock)
    long_mode.write(memory.guest)
    tables = memory.guest.slice(BOOT_PAGE_TABLES, 6 * 4096)
    for offset in range(0, len(tables), 8):  # open to user mode
        (entry,) = struct.unpack_from("<Q", tables, offset)
        struct.pack_into("<Q", tables, offset, entry | (4 if entry & 1 else 0))
    for address, data in guest.memory():
        memory.guest.slice(address, len(data))[:] = data
    start = long_mode.entry_state(layout.CODE, rsp=layout.STACK)
    return machine, start, vsock, engine
