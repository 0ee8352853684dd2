"""An enclave, for programs that run a trio loop: boots it, talks to it, and says how it ended.

The guest runs in a thread. Tasks of the caller's loop move its vsock data, answer the heartbeat, and end it
when it does not boot in time. Several enclaves may run in one loop.
"""

import logging
import math
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from nitro_eif import Measurements
from nitro_nsm import Refusal
from nitro_vmm.accel import Accelerator
from nitro_vmm.defaults import HEARTBEAT_PORT
from nitro_vmm.enclave import timeline
from nitro_vmm.enclave.assembly import Assembly
from nitro_vmm.enclave.causes import Cause, of_silence
from nitro_vmm.enclave.console import Console, ConsoleSink
from nitro_vmm.enclave.egress import HTTP_PROXY_PORT, Egress
from nitro_vmm.enclave.heartbeat import Heartbeat
from nitro_vmm.enclave.launch import Launch
from nitro_vmm.enclave.listener import ParentListener
from nitro_vmm.enclave.outcome import EnclaveEndedError, Outcome, Result, Verdict, judge, late
from nitro_vmm.enclave.tasks import either, ungrouped
from nitro_vmm.errors import LaunchStoppedError, UsageError
from nitro_vmm.machine.machine import End, Ending
from nitro_vmm.plain_config import PlainConfig

if TYPE_CHECKING:
    from pathlib import Path

    from nitro_vmm.config import EnclaveConfig, Endpoint
    from nitro_vmm.enclave.daemon_heartbeat import DaemonHeartbeat
    from nitro_vmm.enclave.debugger import Debugger
    from nitro_vmm.enclave.local_kms import LocalKms
    from nitro_vmm.enclave.published import PublishedPorts
    from nitro_vmm.enclave.timeline import Timeline
    from nitro_vmm.plain_config import EnclaveSettings
    from nitro_vsock import Service

logger = logging.getLogger(__name__)


class Enclave:
    """One launch. ``async with`` boots the enclave, and leaving the block ends it.

    All methods belong to the trio loop that entered the block. What is raised is raised on entering it.

    Args:
        config: What to launch.
        console_sink: A reader of the console that misses nothing, because the guest waits for it.
        accelerator: What runs it; `None` opens the one that the configuration names.
        say: Told what happens, for people.
        started_s: When the launch began, on the monotonic clock; `None` is now.
        launch: A launch of it that has begun, and has the other arguments; `None` begins one.

    Raises:
        ImageError: The image would not boot.
        EifError: It is not an image.
        UsageError: The configuration cannot be.
        HostError: The host lacks something.
        VsockError: A vsock socket cannot be made.
        NsmError: The test root cannot be made or read.
        LaunchStoppedError: It was told to end before its guest ran.
        OSError: The image cannot be read.
    """

    def __init__(
        self,
        config: "EnclaveSettings",
        *,
        console_sink: ConsoleSink | None = None,
        accelerator: Accelerator | None = None,
        say: Callable[[str], None] = logger.info,
        started_s: float | None = None,
        launch: Launch | None = None,
    ) -> None:
        self._launch = launch or Launch(
            config, console_sink=console_sink, accelerator=accelerator, say=say, started_s=started_s
        )
        self._config = config = self._launch.config
        self.console: Console = self._launch.console
        """What the enclave prints."""
        self.timeline: Timeline = self._launch.timeline
        """When what happened, from the launch on."""
        self._say = say = self._launch.say
        self._watch = self._launch.watch
        self._heartbeat = Heartbeat(say, self._launch.seconds, lambda: self.timeline.note(timeline.HEARTBEAT))
        self._cause: Cause | None = None
        self._launch.on_heartbeat = self._on_heartbeat
        self._launch.on_heartbeat_known = self._heartbeat.note
        self._egress = Egress(config.proxy, config.allow)
        self._daemon: DaemonHeartbeat | None = None
        self._debugger: Debugger | None = None
        self._parent = self._launch.parent
        self._parent.egress = self._egress
        self._published: PublishedPorts | None = None
        self._kms: LocalKms | None = None
        self._verdict: Verdict | None = None
        self._result: Result | None = None
        self._ended = trio.Event()
        self._input_wanted = trio.Event()
        self._resources = self._launch.resources
        self._tasks = AsyncExitStack()
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._assembly: Assembly | None = None

    async def __aenter__(self) -> Self:
        self._token = trio.lowlevel.current_trio_token()
        self._launch.on_console_ready = self._on_console_ready
        try:
            with ungrouped():
                self._assembly = await self._assembled()
        except BaseException:
            self._launch.close()
            raise
        self._nursery = self._egress.nursery = await self._tasks.enter_async_context(trio.open_nursery())
        if self._published is not None and self._assembly.engine is not None:
            self._published.start(self._nursery, self._assembly.engine)
        if self._kms is not None:
            self._kms.start(self._nursery)
        for task in (self._run_guest, self._watch_boot, self._move_vsock):
            self._nursery.start_soon(task, self._assembly)
        if self._debugger is not None:
            self._nursery.start_soon(self._debugger.serve)
        self._launch.errands.start(self._have_done)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.terminate()
        try:
            if self._nursery is not None:
                self._nursery.cancel_scope.cancel()
            with ungrouped():
                return bool(await self._tasks.__aexit__(kind, value, trace))
        finally:
            self._parent.end()
            self._launch.close()

    async def _assembled(self) -> Assembly:
        """Put it together in a thread, which ends within some milliseconds when nobody wants the enclave."""
        if self._launch.assembly is not None:
            await trio.lowlevel.checkpoint()
            return self._launch.assembly
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up_when_cancelled)
            try:
                return await trio.to_thread.run_sync(self._assemble)
            except LaunchStoppedError:
                await trio.lowlevel.checkpoint()  # which raises, if this is because the caller was cancelled
                raise
            finally:
                nursery.cancel_scope.cancel()

    async def _give_up_when_cancelled(self) -> None:
        # Waiting for a thread cannot be cancelled.
        try:
            await trio.sleep_forever()
        finally:
            self.give_up("cancelled")

    # What is known from the start.

    @property
    def config(self) -> "EnclaveConfig":
        """What was launched."""
        return self._config.checked() if isinstance(self._config, PlainConfig) else self._config

    @property
    def measurements(self) -> Measurements:
        """PCR0, PCR1, PCR2 and PCR8 of the image."""
        return self._running.hardware.image.measurements

    @property
    def module_id(self) -> str:
        """The security module's name, which is the enclave's own as well."""
        return self._running.module_id

    @property
    def memory_mib(self) -> int:
        """How much memory the enclave has."""
        return self._running.hardware.image.memory_mib

    @property
    def published(self) -> "list[tuple[Endpoint | Path, int]]":
        """Where the published ports are, with the enclave's port; a TCP port that was 0 is the one found."""
        return [] if self._published is None else self._published.endpoints

    @property
    def kms_endpoint(self) -> "Endpoint | None":
        """Where this machine's programs reach the enclave's local KMS; `None` if they cannot."""
        return None if self._kms is None else self._kms.endpoint

    @property
    def gdb(self) -> "Endpoint | None":
        """Where GDB is waited for; a port that was 0 is the one found. `None` if nowhere."""
        return None if self._debugger is None else self._debugger.endpoint

    @property
    def processors(self) -> int:
        """How many processors the enclave has."""
        return self._running.hardware.image.processors

    def counters(self) -> dict[str, int]:
        """What has gone through vsock so far, by the names of `nitro_vsock.Counters`; empty with a daemon."""
        engine = self._running.engine
        return {} if engine is None else asdict(engine.counters())

    # The enclave's life.

    @property
    def has_booted(self) -> bool:
        """Whether the heartbeat has come."""
        return self._heartbeat.at_s is not None

    async def booted(self) -> float:
        """Wait for the heartbeat; returns how many seconds after the launch it came.

        Raises:
            EnclaveEndedError: The enclave ended before.
        """
        await either(self._heartbeat.came, self._ended)
        if self._heartbeat.at_s is not None:
            return self._heartbeat.at_s
        raise EnclaveEndedError(await self.wait())

    async def wait(self) -> Result:
        """Wait for the enclave's end."""
        await self._ended.wait()
        assert self._result is not None  # noqa: S101 - set before the event
        return self._result

    def give_up(self, reason: str = "given up") -> None:
        """Put the enclave together no further, if its guest does not run yet; any thread may call this.

        Args:
            reason: What `LaunchStoppedError` says.
        """
        self._launch.give_up(reason)

    def terminate(self, reason: str = "ended by its parent") -> None:
        """End the enclave, whatever it does; `wait` tells when it has.

        Args:
            reason: What `Result.reason` says. The first one counts, and none after the guest's own end.
        """
        self._stop(Verdict(Outcome.STOPPED, reason))

    async def stop(self, reason: str = "ended by its parent") -> Result:
        """`terminate` and `wait`."""
        self.terminate(reason)
        return await self.wait()

    async def pause(self) -> None:
        """Let the guest stand still until `resume`. Time goes on for it.

        Raises:
            EnclaveEndedError: It has ended.
        """
        if not await trio.to_thread.run_sync(self._running.machine.pause):
            raise EnclaveEndedError(await self.wait())

    def resume(self) -> None:
        """Let the guest go on."""
        self._running.machine.resume()

    # Talking to it.

    async def connect(self, port: int) -> trio.SocketStream:
        """Connect to a vsock port of the enclave.

        Raises:
            ConnectionRefusedError: Nothing listens on that port, or the enclave has ended.
            UsageError: A daemon serves vsock.
        """
        engine = self._running.engine
        if engine is None:
            raise UsageError(
                "a vhost-user daemon serves this enclave's vsock",
                hint="connect through the daemon's sockets",
                code="M27",
            )
        accepted = False
        answered = trio.Event()

        def on_result(result: bool) -> None:  # noqa: FBT001 - the engine's callback
            nonlocal accepted
            accepted = result
            self._launch.errands.give(answered.set)

        ours, theirs = socket.socketpair()
        engine.adopt(theirs, port, on_result=on_result)
        try:
            await either(answered, self._ended)
        finally:
            if not accepted:
                ours.close()
        if not accepted:
            raise ConnectionRefusedError(f"the enclave does not listen on vsock port {port}")
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    def listen(self, port: int) -> ParentListener:
        """Take the connections that the enclave opens to a port of its parent, CID 3.

        May be called before the enclave is entered. Close the listener, or use it in a ``with`` block.

        Raises:
            UsageError: There is a listener, there can be no such port, or a daemon serves vsock.
        """
        if self._config.vhost_user_path is not None:
            raise UsageError(
                "a vhost-user daemon serves this enclave's vsock",
                hint="listen on the daemon's sockets",
                code="M27",
            )
        return self._parent.listen(port)

    async def attest(
        self, *, nonce: bytes | None = None, user_data: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """An attestation document with the registers as they are now, signed as those for the guest.

        On AWS only the enclave itself gets documents. This one is for tests: of a verifier, of what the
        application extends, of a KMS that should give it a key.

        Raises:
            UsageError: The module makes no such document, because a value is too long.
        """
        from nitro_nsm import NsmClient  # noqa: PLC0415 - few ask here, and the guest not with it

        assembly = self._running
        made: list[bytes | Refusal] = []

        def ask() -> None:
            try:
                client = NsmClient(assembly.nsm.handle)
                made.append(client.attest(nonce=nonce, user_data=user_data, public_key=public_key))
            except Refusal as refusal:
                made.append(refusal)

        await trio.to_thread.run_sync(assembly.machine.locked, ask)
        if isinstance(made[0], Refusal):
            raise UsageError(
                f"the security module makes no such document: {made[0]}",
                hint="nonce, user data and public key together have less than 4096 bytes",
            ) from made[0]
        return made[0]

    async def send_input(self, data: bytes) -> None:
        """Type on the enclave's console; returns when the guest has taken all of it."""
        machine = self._running.machine
        await trio.lowlevel.checkpoint()
        while data and self._result is None:
            # A new event before the attempt: the guest may make room at any moment after it was refused.
            wanted = self._input_wanted = trio.Event()
            data = data[machine.type(data) :]
            if data:
                await wanted.wait()

    # The inside.

    @property
    def _running(self) -> Assembly:
        if self._assembly is None:
            raise UsageError("the enclave was not launched", hint="use it in an `async with` block")
        return self._assembly

    def _booting_s(self) -> float:
        """How much of the boot time-out is over; a guest that a debugger has stopped does not boot."""
        return self._launch.seconds() if self._debugger is None else self._debugger.ran_s

    def _assemble(self) -> Assembly:
        launch = self._launch
        services: dict[int, Service] = {}
        if self._config.allow:
            services[HTTP_PROXY_PORT] = self._on_proxy
        if (kms := self._config.kms) is not None:
            if kms.port in {HEARTBEAT_PORT, *services}:
                raise UsageError(f"port {kms.port} of the parent is in use", hint="give kms another port")
            from nitro_vmm.enclave.local_kms import open_local_kms  # noqa: PLC0415 - few want one
            from nitro_vmm.enclave.security import trust_of  # noqa: PLC0415

            root = trust_of(self._config)
            self._kms = open_local_kms(self.config, kms, root, self._resources, self._say)
            services[kms.port] = self._kms.serve
        if self._config.publish:
            from nitro_vmm.enclave.published import PublishedPorts  # noqa: PLC0415 - few have any

            self._published = PublishedPorts(self._config.publish, self._resources, self._say)
        if self._config.gdb is not None:
            from nitro_vmm.enclave.debugger import Debugger  # noqa: PLC0415 - few want one

            self._debugger = Debugger(self._config.gdb, self.terminate, self._say)
            self._resources.callback(self._debugger.close)
        if launch.begun is None:
            launch.begin()
        assembly = launch.connect(services)
        if self._debugger is not None:
            assert self._token is not None  # noqa: S101 - set before
            self._debugger.attach(assembly.machine, assembly.hardware.memory.guest, self._token)
        if self._config.vhost_user_path is not None:
            from nitro_vmm.enclave.daemon_heartbeat import UNSEEN, DaemonHeartbeat  # noqa: PLC0415 - few have one

            if self._config.vhost_user_stats_path is not None:
                self._daemon = DaemonHeartbeat(self._config.vhost_user_stats_path, assembly.cid)
            else:
                self._say(UNSEEN)
        return assembly

    def _stop(self, verdict: Verdict) -> None:
        if self._verdict is None:
            self._verdict = verdict
        self._launch.give_up(verdict.reason)
        self._launch.stop()

    # What the machine calls, in a processor's thread.

    def _on_console_ready(self) -> None:
        self._launch.errands.give(self._input_wanted.set)

    # Tasks.

    def _have_done(self, errand: Callable[[], object]) -> bool:
        """Have something done in the loop's thread, from any thread; false if the loop has ended.

        What vsock calls may come from a processor's thread.
        """
        assert self._token is not None  # noqa: S101 - set before the tasks run
        try:
            self._token.run_sync_soon(errand)
        except trio.RunFinishedError:
            return False
        return True

    def _on_heartbeat(self, sock: socket.socket) -> None:
        if self._nursery is None:
            sock.close()
            return
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._nursery.start_soon(self._heartbeat.answer, stream)

    def _on_proxy(self, sock: socket.socket) -> None:
        self.timeline.note(timeline.FROM_ENCLAVE, f"port {HTTP_PROXY_PORT}")
        self._egress.serve_http(sock)

    async def _run_guest(self, assembly: Assembly) -> None:
        launch = self._launch
        if not launch.runs:
            launch.run(assembly.begun)
        ending = Ending(End.CRASHED, "its thread failed")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_when_cancelled)
                # A limiter of its own, because this takes a thread for as long as the guest lives.
                ending = await trio.to_thread.run_sync(launch.ended.result, limiter=trio.CapacityLimiter(1))
                if self._daemon is not None and not self.has_booted:
                    await self._daemon.look(self._heartbeat)  # it may have come just before the end
                nursery.cancel_scope.cancel()
        finally:
            self._settle(assembly, ending)

    def _settle(self, assembly: Assembly, ending: Ending) -> None:
        """The guest has ended: tell everybody who waits."""
        verdict = self._verdict or judge(ending, panic=self._watch.panic)
        self._result = Result(
            verdict.outcome,
            verdict.reason,
            seconds=self._launch.seconds(),
            heartbeat_s=self._heartbeat.at_s,
            measurements=assembly.hardware.image.measurements,
            module_id=assembly.module_id,
            memory_mib=assembly.hardware.image.memory_mib,
            cid=assembly.cid,
            debug_mode=self._config.debug_mode,
            application=self._watch.application,
            cause=self._watch.cause or self._cause,
        )
        if self._watch.panic is not None:
            self.timeline.note(timeline.PANIC, self._watch.panic)
        self.timeline.note(timeline.END, verdict.reason)
        self.console.close()
        self._input_wanted.set()
        self._parent.end()
        self._ended.set()

    async def _stop_when_cancelled(self) -> None:
        # Waiting for a thread cannot be cancelled, so whatever cancels the tasks has to end the guest.
        try:
            await trio.sleep_forever()
        finally:
            self._launch.stop()

    async def _watch_boot(self, assembly: Assembly) -> None:
        if self._config.vhost_user_path is not None and self._daemon is None:
            return  # a program of the user's gets the heartbeat from the daemon
        while (remaining_s := self._config.boot_timeout_s - self._booting_s()) > 0:
            with trio.move_on_after(remaining_s):
                if self._daemon is not None:
                    await self._daemon.watch(self._heartbeat)
                await self._heartbeat.came.wait()
                if assembly.begun.missing:
                    from nitro_vmm.enclave.maker import make_saved_machine  # noqa: PLC0415 - mostly none is
                for parameters in assembly.begun.missing:
                    make_saved_machine(self._config, parameters)
                return
        self._cause = of_silence(
            printed=self._watch.printed,
            device_found=assembly.machine.board.driver_runs("vsock"),
            wrong=self._heartbeat.failures > 0,
        )
        self._stop(late(self._config.boot_timeout_s, panic=self._watch.panic))

    async def _move_vsock(self, assembly: Assembly) -> None:
        vsock, watched = assembly.vsock, assembly.engine
        while True:
            delay_s = vsock.turn()
            if delay_s == 0:
                await trio.lowlevel.checkpoint()
                continue
            # Here, because a busy vsock has no time for it. The first one counts.
            if watched is not None and watched.counters().opened_by_host:
                self.timeline.note(timeline.TO_ENCLAVE)
                watched = None
            with trio.move_on_after(math.inf if delay_s is None else delay_s):
                await trio.lowlevel.wait_readable(vsock.fileno())
