"""What of an enclave needs no event loop: its machine, the thread that it runs in, and what it prints.

`Enclave` does the rest. A command has its guest run before it imports that, because both take their time and
there are mostly two processors. Its devices are there before, too, where they can be, because a guest that
goes on from a saved machine needs them at once.
"""

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from nitro_vmm.accel import Accelerator, open_accelerator
from nitro_vmm.defaults import CID_DEFAULT, HEARTBEAT, HEARTBEAT_PORT
from nitro_vmm.enclave import timeline
from nitro_vmm.enclave.console import Console, ConsoleSink
from nitro_vmm.enclave.errands import Errands
from nitro_vmm.enclave.timeline import Timeline
from nitro_vmm.enclave.watch import ConsoleWatch
from nitro_vmm.errors import LaunchStoppedError
from nitro_vmm.plain_config import PlainConfig

if TYPE_CHECKING:
    from nitro_vmm.enclave.ahead import Ahead
    from nitro_vmm.enclave.assembly import Assembly
    from nitro_vmm.enclave.boot import Begun
    from nitro_vmm.enclave.parent import ParentSide
    from nitro_vmm.machine.machine import Ending, Machine
    from nitro_vmm.plain_config import EnclaveSettings
    from nitro_vsock import Service

logger = logging.getLogger(__name__)

EARLY_BEAT_S: Final = 0.5
"""How long an early heartbeat may take after its connection; what takes longer is left to the loop."""

free_cids = itertools.count(CID_DEFAULT)
"""Vsock addresses of this process's enclaves that want a free one; each has a vsock of its own, so an address
that another enclave was given is no clash."""


class Launch:
    """One launch, from its beginning.

    Args:
        choice: What to launch.
        console_sink: A reader of the console that misses nothing, because the guest waits for it.
        accelerator: What runs it; `None` opens the one that the configuration names.
        say: Told what happens, for people.
        started_s: When the launch began, on the monotonic clock; `None` is now.
        ahead: What has begun to measure its files.
    """

    def __init__(
        self,
        choice: "EnclaveSettings",
        *,
        console_sink: ConsoleSink | None = None,
        accelerator: Accelerator | None = None,
        say: Callable[[str], None] = logger.info,
        started_s: float | None = None,
        ahead: "Ahead | None" = None,
    ) -> None:
        if not choice.cid and not isinstance(choice, PlainConfig):
            choice = choice.model_copy(update={"cid": next(free_cids)})
        self.config: EnclaveSettings = choice
        """What is launched."""
        self.say: Callable[[str], None] = say
        """Told what happens, for people."""
        self.console: Console = Console(console_sink)
        """What the guest prints."""
        self.timeline: Timeline = Timeline(self.seconds)
        """When what happened, from the launch on."""
        self.watch: ConsoleWatch = ConsoleWatch(self.timeline.note_line)
        """What is learned from the console."""
        self.on_console_ready: Callable[[], None] = lambda: None
        """Called in a processor's thread when the guest takes input again."""
        self.on_heartbeat: Service = socket.socket.close
        """Called in the loop's thread with the enclave's connection to the heartbeat's port."""
        self.on_heartbeat_known: Callable[[float], None] = lambda _at_s: None
        """Called in the loop's thread with the seconds since the launch at which the heartbeat came, where a
        program of the user's has taken it, or it was answered before there was a loop."""
        self.errands: Errands = Errands()
        """What the loop is to do."""
        self.resources: ExitStack = ExitStack()
        """What has to be given back when the enclave has ended."""
        self.begun: Begun | None = None
        """The machine."""
        self.assembly: Assembly | None = None
        """The same with all its devices."""
        self.ended: Future[Ending] = Future()
        """How the machine came to its end."""
        self._started_s = time.monotonic() if started_s is None else started_s
        self._accelerator = accelerator
        self._ahead = ahead
        self._machine: Machine | None = None
        self._stopped = False
        self._given_up = ""
        self._printing = threading.Lock()
        self._answers_early = False

    def seconds(self) -> float:
        """How long ago the launch began."""
        return time.monotonic() - self._started_s

    @cached_property
    def parent(self) -> "ParentSide":
        """Who gets the connections that the enclave opens.

        Raises:
            VsockError: The path of the parent's sockets is too long.
        """
        # Here, because a guest that boots needs none of it for a while.
        from nitro_vmm.enclave.parent import ParentSide  # noqa: PLC0415
        from nitro_vsock import UnixHostSide  # noqa: PLC0415

        prefix = self.config.vsock_path
        return ParentSide(
            None if prefix is None else UnixHostSide(prefix),
            self._note_heartbeat,
            lambda port: self.timeline.note(timeline.FROM_ENCLAVE, f"port {port}"),
            soon=self.errands.give,
        )

    def served(self, serve: "Service") -> "Service":
        """A handler of the enclave's connections that calls this one in the loop's thread."""

        def hand_over(sock: socket.socket) -> None:
            if not self.errands.give(partial(serve, sock)):
                sock.close()

        return hand_over

    def begin(self) -> None:
        """Make the machine, and let the guest run if it can, see `EnclaveConfig.begins_at_once`.

        Raises:
            ImageError: The image would not boot.
            EifError: It is not an image.
            UsageError: The configuration cannot be.
            HostError: The host lacks something.
            StateError: The saved machine cannot go on here.
            LaunchStoppedError: It was given up.
            OSError: The image cannot be read.
        """
        # First of all, because Unicorn measures a clock from here on, for 20 ms or more. Why it was chosen is
        # told when the image is known to boot.
        notes: list[str] = []
        accelerator = self._accelerator or open_accelerator(self.config.accelerator, say=notes.append)
        self.timeline.note(timeline.ACCELERATOR, accelerator.name)
        from nitro_vmm.enclave.begin import begin  # noqa: PLC0415 - takes as long to import
        from nitro_vmm.enclave.boot import Surroundings  # noqa: PLC0415

        around = Surroundings(
            console=self._on_console,
            console_ready=self._on_console_ready,
            say=self.say,
            timeline=self.timeline,
            notes=notes,
            proceed=self._proceed,
            ahead=self._ahead,
        )
        self.begun = begin(self.config, accelerator, self.resources, around)
        if self.config.begins_at_once:
            self.run(self.begun)

    def connect(self, services: "Mapping[int, Service]" = MappingProxyType({})) -> "Assembly":
        """Give the machine its security module and its vsock; the guest may run already.

        Args:
            services: Handlers of other ports of the parent than the heartbeat's, called in the loop's thread.

        Raises:
            UsageError: The configuration cannot be.
            HostError: The host lacks something.
            StateError: The saved machine cannot go on here.
            VsockError: A vsock socket cannot be made.
            NsmError: The test root cannot be made or read.
        """
        from nitro_vmm.enclave.assembly import Reach, connect  # noqa: PLC0415 - the guest runs meanwhile

        assert self.begun is not None  # noqa: S101 - see above
        handlers = {port: self.served(handler) for port, handler in services.items()}
        reach = Reach(self.parent, {HEARTBEAT_PORT: self._serve_heartbeat, **handlers})
        self.assembly = connect(self.config, self.begun, self.resources, self.timeline, reach)
        return self.assembly

    @property
    def runs(self) -> bool:
        """Whether the guest was started."""
        return self._machine is not None

    def run(self, begun: "Begun") -> None:
        """Let a machine run in a thread of its own, until `stop` or its own end; `ended` tells of it.

        Raises:
            RuntimeError: The host has no room for another thread.
        """
        self._machine = machine = begun.hardware.machine
        if self._stopped:
            machine.stop()

        def run() -> None:
            try:
                self.ended.set_result(machine.run(begun.entry))
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                self.ended.set_exception(error)

        self.timeline.note(timeline.STARTED)
        # What it prints now waits for what it had printed before, which this thread looks at while it runs.
        with self._printing:
            try:
                threading.Thread(target=run, name="guest", daemon=True).start()
            except RuntimeError:
                self._machine = None  # so that `close` does not wait for an end that never comes
                raise
            if begun.printed:
                self._take_output(begun.printed)

    def give_up(self, reason: str) -> None:
        """Let no guest run that does not run yet: measuring and loading then end within some milliseconds.

        Any thread may call this, and a handler of signals.

        Args:
            reason: What `LaunchStoppedError` says; the first one counts.
        """
        self._given_up = self._given_up or reason

    def _proceed(self) -> None:
        if self._given_up:
            raise LaunchStoppedError(self._given_up)

    def stop(self) -> None:
        """End the guest, whatever it does, or let it not begin."""
        self._stopped = True
        self.console.abandon()
        if self._machine is not None:
            self._machine.stop()

    def close(self) -> None:
        """End the guest if it runs, and give back everything."""
        self.stop()
        if self._machine is not None:
            with suppress(Exception):  # whoever asked for the result has it
                self.ended.result()
        self.resources.close()
        self.errands.end()

    # The handlers of now, which may be others than when these were handed on.

    def _on_console_ready(self) -> None:
        self.on_console_ready()

    def _on_heartbeat(self, sock: socket.socket) -> None:
        self.on_heartbeat(sock)

    # The heartbeat, which may come before the loop.

    def _serve_heartbeat(self, sock: socket.socket) -> None:
        """A connection to the heartbeat's port; called in any thread, which may not wait."""
        hand_over = self.served(self._on_heartbeat)
        if self.errands.started or self._answers_early:
            hand_over(sock)
            return
        self._answers_early = True  # only the first, because a guest can open many
        try:
            threading.Thread(
                target=self._answer, args=(sock, hand_over), name="heartbeat", daemon=True
            ).start()
        except RuntimeError:  # there is no room for another thread
            hand_over(sock)

    def _answer(self, sock: socket.socket, hand_over: "Service") -> None:
        """Answer a right heartbeat at once, and leave any other to the loop."""
        try:
            sock.settimeout(EARLY_BEAT_S)
            if sock.recv(1, socket.MSG_PEEK) == HEARTBEAT:
                sock.sendall(HEARTBEAT)
                sock.close()
                self._note_heartbeat()
                return
            sock.settimeout(None)
        except OSError:
            pass
        hand_over(sock)

    def _note_heartbeat(self) -> None:
        at_s = self.seconds()
        self.timeline.note(timeline.HEARTBEAT)
        self.errands.give(lambda: self.on_heartbeat_known(at_s))

    def _on_console(self, data: bytes) -> None:
        with self._printing:
            self._take_output(data)

    def _take_output(self, data: bytes) -> None:
        if not self.watch.printed:
            self.timeline.note(timeline.FIRST_OUTPUT)
        self.console.write(data)
        over = self.watch.feed(data)
        if self.watch.application is not None:
            self.timeline.note(timeline.APPLICATION_ENDED, str(self.watch.application))
        if over and self._machine is not None:
            self._machine.stop()
