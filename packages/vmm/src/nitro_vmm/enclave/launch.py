"""What of an enclave needs no event loop: its machine, the thread that it runs in, and what it prints.

`Enclave` does the rest. A command has its guest run before it imports that, because both take their time and
there are mostly two processors.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from nitro_vmm.accel import Accelerator, open_accelerator
from nitro_vmm.enclave import timeline
from nitro_vmm.enclave.begin import begin
from nitro_vmm.enclave.boot import Begun, Surroundings
from nitro_vmm.enclave.console import Console, ConsoleSink
from nitro_vmm.enclave.timeline import Timeline
from nitro_vmm.enclave.watch import ConsoleWatch
from nitro_vmm.errors import LaunchStoppedError

if TYPE_CHECKING:
    from nitro_vmm.machine.machine import Ending, Machine
    from nitro_vmm.plain_config import EnclaveSettings

logger = logging.getLogger(__name__)


class Launch:
    """One launch, from its beginning.

    Args:
        choice: What to launch.
        console_sink: A reader of the console that misses nothing, because the guest waits for it.
        accelerator: What runs it; `None` opens the one that the configuration names.
        say: Told what happens, for people.
        started_s: When the launch began, on the monotonic clock; `None` is now.
    """

    def __init__(
        self,
        choice: "EnclaveSettings",
        *,
        console_sink: ConsoleSink | None = None,
        accelerator: Accelerator | None = None,
        say: Callable[[str], None] = logger.info,
        started_s: float | None = None,
    ) -> None:
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
        self.resources: ExitStack = ExitStack()
        """What has to be given back when the enclave has ended."""
        self.begun: Begun | None = None
        """The machine that runs already."""
        self.ended: Future[Ending] = Future()
        """How the machine came to its end."""
        self._choice = choice
        self._started_s = time.monotonic() if started_s is None else started_s
        self._accelerator = accelerator
        self._machine: Machine | None = None
        self._stopped = False
        self._given_up = ""

    def seconds(self) -> float:
        """How long ago the launch began."""
        return time.monotonic() - self._started_s

    def begin(self) -> None:
        """Let the guest run, from a saved machine or from its boot.

        Only where nothing has to be there before, see `EnclaveConfig.begins_at_once`.

        Raises:
            ImageError: The image would not boot.
            EifError: It is not an image.
            UsageError: The configuration cannot be.
            HostError: The host lacks something.
            StateError: The saved machine cannot go on here.
            LaunchStoppedError: It was given up.
            OSError: The image cannot be read.
        """
        accelerator, around = self.open()
        self.begun = begin(self._choice, accelerator, self.resources, around)
        self.run(self.begun)

    def open(self) -> tuple[Accelerator, Surroundings]:
        """Open the accelerator; returns it with what its machine is to be connected to.

        It comes first of all, because Unicorn measures a clock while the image is loaded. Why it was chosen
        is told when the image is known to boot.

        Raises:
            UsageError: There is no accelerator of this name.
            HostError: It cannot be used here.
        """
        notes: list[str] = []
        accelerator = self._accelerator or open_accelerator(self._choice.accelerator, say=notes.append)
        self.timeline.note(timeline.ACCELERATOR, accelerator.name)
        around = Surroundings(
            console=self._on_console,
            console_ready=self._on_console_ready,
            say=self.say,
            timeline=self.timeline,
            notes=notes,
            proceed=self._proceed,
        )
        return accelerator, around

    def run(self, begun: Begun) -> None:
        """Let a machine run in a thread of its own, until `stop` or its own end; `ended` tells of it.

        Raises:
            RuntimeError: The host has no room for another thread.
        """
        self._machine = machine = begun.hardware.machine
        if self._stopped:
            machine.stop()

        def run() -> None:
            try:
                if begun.printed:
                    self._on_console(begun.printed)
                self.ended.set_result(machine.run(begun.entry))
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                self.ended.set_exception(error)

        self.timeline.note(timeline.STARTED)
        try:
            threading.Thread(target=run, name="guest", daemon=True).start()
        except RuntimeError:
            self._machine = None  # so that `close` does not wait for an end that never comes
            raise

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

    def _on_console_ready(self) -> None:
        self.on_console_ready()

    def _on_console(self, data: bytes) -> None:
        if not self.watch.printed:
            self.timeline.note(timeline.FIRST_OUTPUT)
        self.console.write(data)
        over = self.watch.feed(data)
        if self.watch.application is not None:
            self.timeline.note(timeline.APPLICATION_ENDED, str(self.watch.application))
        if over and self._machine is not None:
            self._machine.stop()
