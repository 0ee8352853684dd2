"""Launches an enclave and sees it through to its end: the shell around `Machine`.

The guest runs in a thread; trio's main task moves vsock data, feeds the console, answers the heartbeat and
waits for signals and time-outs.
"""

import logging
import math
import os
import select
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import trio

from nitro_eif import Eif, Measurements
from nitro_nsm import Nsm, NsmConfig, ensure_test_root
from nitro_vmm.accel.state import EntryState
from nitro_vmm.accel.unicorn import measure_tsc_hz, read_tsc
from nitro_vmm.boot.loader import load
from nitro_vmm.config import EnclaveConfig
from nitro_vmm.console import ConsoleWriter, PanicWatch
from nitro_vmm.devices.virtio_vhost_user_vsock import VhostUserVsockDevice
from nitro_vmm.devices.virtio_vsock import VsockDevice
from nitro_vmm.image import MIB, choose_memory_mib, measure
from nitro_vmm.machine import End, Machine, Memory
from nitro_vsock import HostSide, SocketType, UnixHostSide, VsockConfig, VsockEngine
from nitro_vsock.vhost_user.frontend import SharedRegion

if TYPE_CHECKING:
    from concurrent.futures import Future

logger = logging.getLogger(__name__)

HEARTBEAT_PORT: Final = 9000
HEARTBEAT: Final = b"\xb7"
"""What the enclave's init sends once it runs, and waits to get back (nitro-cli, eif_loader)."""
VIRTIO_DEVICES: Final = 2
RNG_SEED_BYTES: Final = 64
STOP_RETRY_S: Final = 0.02
INPUT_CHUNK_BYTES: Final = 4096


class ExitCode(IntEnum):
    """What ``vmm run`` exits with."""

    ENDED = 0
    """The enclave powered off or rebooted."""
    FAILED = 1
    """A failure of ours."""
    USAGE = 2
    IMAGE = 3
    """The image cannot be read, or would not boot."""
    HOST = 4
    """The host lacks something."""
    BOOT_TIMEOUT = 5
    """No heartbeat in time."""
    PANIC = 10
    """The enclave's kernel panicked."""
    CRASH = 11
    """Triple fault, or the guest ran where there is no code."""
    INTERRUPTED = 130
    """Ctrl-C."""
    TERMINATED = 143
    """SIGTERM."""


@dataclass(frozen=True, slots=True)
class Result:
    """How an enclave ended."""

    exit_code: ExitCode
    reason: str
    """For people."""
    seconds: float
    """Since the launch."""
    heartbeat_s: float | None
    """When the heartbeat came, in seconds since the launch."""
    measurements: Measurements
    module_id: str
    memory_mib: int


class Enclave:
    """One launch.

    Args:
        config: What to launch.
        console_fd: Where the console goes.
        say: Told what happens, for people.
        started_s: When the launch began, on the monotonic clock.
    """

    def __init__(
        self,
        config: EnclaveConfig,
        *,
        console_fd: int = 1,
        say: Callable[[str], None] = logger.info,
        started_s: float | None = None,
    ) -> None:
        self._config = config
        self._console_fd = console_fd
        self._say = say
        self._started_s = time.monotonic() if started_s is None else started_s
        self._heartbeat_s: float | None = None
        self._booted = trio.Event()
        self._verdict: tuple[ExitCode, str] | None = None
        self._panic = PanicWatch()

    def run(self) -> Result:
        """Boot the enclave and wait for its end; blocks.

        Raises:
            ImageError: The image would not boot.
            EifError: It is not an image.
            UsageError: The configuration cannot be.
            HostError: The host lacks something.
            VsockError: A vsock socket cannot be made.
            NsmError: The test root cannot be made or read.
            OSError: The image cannot be read.
        """
        with ExitStack() as stack:
            tsc = read_tsc()
            memory_mib = choose_memory_mib(self._config)
            with Eif.open(self._config.eif_path) as eif:
                measurements = measure(eif)
                memory, regions = self._allocate(memory_mib * MIB, stack)
                self._say(
                    f"booting {self._config.eif_path} ({self._config.eif_path.stat().st_size / MIB:.1f} MiB) "
                    f"in {memory_mib} MiB"
                )
                entry = load(
                    memory.guest,
                    memory_mib * MIB,
                    kernel_image=eif.kernel,
                    image_command_line=bytes(eif.cmdline),
                    ramdisks=eif.ramdisks,
                    rng_seed=os.urandom(RNG_SEED_BYTES),
                    virtio_devices=VIRTIO_DEVICES,
                    append=[self._config.cmdline_append.encode()] if self._config.cmdline_append else [],
                )
            nsm = self._security_module(measurements)
            self._writer = ConsoleWriter(self._console_fd)
            stack.callback(self._writer.close)
            self._machine = Machine(
                memory,
                tsc_hz=measure_tsc_hz(tsc),
                nsm=nsm,
                console=self._on_console,
                console_ready=self._on_console_ready,
            )
            self._vsock = self._vsock_device(memory, regions)
            stack.callback(self._vsock.close)
            self._machine.add_virtio(self._vsock, name="vsock")
            with terminal_without_echo():
                trio.run(self._supervise, entry)
        assert self._verdict is not None  # noqa: S101 - _supervise ends with one
        code, reason = self._verdict
        return Result(
            code,
            reason,
            time.monotonic() - self._started_s,
            self._heartbeat_s,
            measurements,
            nsm.module_id,
            memory_mib,
        )

    def _allocate(self, memory_bytes: int, stack: ExitStack) -> tuple[Memory, list[SharedRegion]]:
        if self._config.vhost_user_path is None:
            return Memory(memory_bytes), []
        fd = os.memfd_create("enclave-ram", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.truncate(fd, memory_bytes)
        memory = Memory(memory_bytes, fd=fd)
        regions, offset = [], 0
        for address, size in memory.ranges:
            regions.append(SharedRegion(address, size, fd, offset))
            offset += size
        return memory, regions

    def _security_module(self, measurements: Measurements) -> Nsm:
        pcrs = {0: measurements.pcr0, 1: measurements.pcr1, 2: measurements.pcr2}
        if measurements.pcr8 is not None:
            pcrs[8] = measurements.pcr8
        config = NsmConfig(
            pcrs=pcrs,
            role_arn=self._config.role_arn,
            instance_id=self._config.instance_id,
            debug_mode=self._config.debug_mode,
        )
        return Nsm(config, root=ensure_test_root())

    def _vsock_device(
        self, memory: Memory, regions: list[SharedRegion]
    ) -> VsockDevice | VhostUserVsockDevice:
        locked = self._machine.locked
        if self._config.vhost_user_path is not None:
            return VhostUserVsockDevice(self._config.vhost_user_path, memory.guest, regions, locked=locked)
        config = VsockConfig(
            guest_cid=self._config.cid,
            uds_path=self._config.vsock_path,
            seqpacket=self._config.seqpacket,
        )
        prefix = self._config.vsock_path
        host_side = None if prefix is None else _HeartbeatWatch(UnixHostSide(prefix), self._note_heartbeat)
        engine = VsockEngine(config, services={HEARTBEAT_PORT: self._on_heartbeat}, host_side=host_side)
        return VsockDevice(engine, memory.guest, locked=locked)

    # What the machine calls, in the processor's thread.

    def _on_console(self, data: bytes) -> None:
        self._writer.write(data)
        if self._panic.feed(data):
            self._machine.stop()

    def _on_console_ready(self) -> None:
        self._token.run_sync_soon(self._input_wanted.set)

    # What vsock calls, in the main task.

    def _on_heartbeat(self, stream: socket.socket) -> None:
        self._nursery.start_soon(self._answer_heartbeat, stream)

    async def _answer_heartbeat(self, stream: socket.socket) -> None:
        with trio.socket.from_stdlib_socket(stream) as connection:
            try:
                byte = await connection.recv(1)
                if byte == HEARTBEAT:
                    await connection.send(byte)
                    self._note_heartbeat()
                else:
                    self._say(f"the enclave's heartbeat was {byte.hex() or 'empty'}, not {HEARTBEAT.hex()}")
            except OSError as error:
                self._say(f"the enclave broke off its heartbeat: {error.strerror}")

    def _note_heartbeat(self) -> None:
        if self._heartbeat_s is None:
            self._heartbeat_s = time.monotonic() - self._started_s
            self._say(f"heartbeat after {self._heartbeat_s:.2f} s")
            self._booted.set()

    # Tasks.

    async def _supervise(self, entry: EntryState) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._input_wanted = trio.Event()
        async with trio.open_nursery() as self._nursery:
            for task in (self._watch_signals, self._watch_boot, self._move_vsock, self._feed_console):
                self._nursery.start_soon(task)
            end, details = await trio.to_thread.run_sync(self._machine.run, entry)
            if self._verdict is None:
                self._verdict = self._judge(end, details)
            self._nursery.cancel_scope.cancel()

    def _judge(self, end: End, details: str) -> tuple[ExitCode, str]:
        if self._panic.reason is not None:
            return ExitCode.PANIC, f"the enclave's kernel panicked: {self._panic.reason}"
        reason = f"the enclave {end.value}" + (f": {details}" if details else "")
        crashed = end in (End.TRIPLE_FAULT, End.CRASHED)
        return ExitCode.CRASH if crashed else ExitCode.ENDED, reason

    async def _stop(self, code: ExitCode, reason: str) -> None:
        if self._verdict is None:
            self._verdict = code, reason
        self._writer.abandon()
        while True:
            self._machine.stop()
            await trio.sleep(STOP_RETRY_S)

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                if number == signal.SIGTERM:
                    self._nursery.start_soon(self._stop, ExitCode.TERMINATED, "ended by SIGTERM")
                else:
                    self._nursery.start_soon(self._stop, ExitCode.INTERRUPTED, "ended by Ctrl-C")

    async def _watch_boot(self) -> None:
        if self._config.vhost_user_path is not None:
            return  # the daemon's clients get the heartbeat
        remaining_s = self._config.boot_timeout_s - (time.monotonic() - self._started_s)
        with trio.move_on_after(max(remaining_s, 0)):
            await self._booted.wait()
            return
        reason = f"no heartbeat within {self._config.boot_timeout_s:g} s"
        if self._panic.reason is not None:
            await self._stop(ExitCode.PANIC, f"the enclave's kernel panicked: {self._panic.reason}")
        await self._stop(ExitCode.BOOT_TIMEOUT, reason)

    async def _move_vsock(self) -> None:
        while True:
            delay_s = self._vsock.turn()
            if delay_s == 0:
                await trio.lowlevel.checkpoint()
                continue
            with trio.move_on_after(math.inf if delay_s is None else delay_s):
                await trio.lowlevel.wait_readable(self._vsock.fileno())

    async def _feed_console(self) -> None:
        fd = _stdin_fd()
        if fd < 0 or not _may_read(fd):
            return
        waits = _pollable(fd)
        while True:
            if waits:
                await trio.lowlevel.wait_readable(fd)
            if not (data := os.read(fd, INPUT_CHUNK_BYTES)):
                return
            while data:
                self._input_wanted = trio.Event()
                data = data[self._machine.type(data) :]
                if data:
                    await self._input_wanted.wait()


class _HeartbeatWatch:
    """The host side, and an eye on the port of the heartbeat, which a parent program may have taken."""

    def __init__(self, inner: HostSide, notice: Callable[[], None]) -> None:
        self._inner = inner
        self._notice = notice

    def connect(self, port: int, socket_type: SocketType) -> "socket.socket | Future[socket.socket]":
        """See `HostSide.connect`."""
        connection = self._inner.connect(port, socket_type)
        if port == HEARTBEAT_PORT:
            self._notice()
        return connection


def _stdin_fd() -> int:
    """Standard input's descriptor; -1 if it is closed, or no file as in a notebook."""
    try:
        return -1 if sys.stdin is None else sys.stdin.fileno()
    except ValueError:  # UnsupportedOperation is one
        return -1


def _pollable(fd: int) -> bool:
    """Whether the descriptor can be waited for; files and /dev/null are always ready."""
    with select.epoll() as epoll:
        try:
            epoll.register(fd, select.EPOLLIN)
        except PermissionError:
            return False
    return True


def _may_read(fd: int) -> bool:
    """Whether reading would not stop this process as a background job."""
    return not os.isatty(fd) or os.tcgetpgrp(fd) == os.getpgrp()


@contextmanager
def terminal_without_echo() -> Iterator[None]:
    """Leave echo and line editing to the guest while a terminal is its console; Ctrl-C stays ours."""
    fd = _stdin_fd()
    if fd < 0 or not os.isatty(fd) or not _may_read(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    changed = termios.tcgetattr(fd)
    changed[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(fd, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
