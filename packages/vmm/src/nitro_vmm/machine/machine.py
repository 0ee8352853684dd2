"""The machine: runs its processors in threads, pauses and stops them, and says how it ended.

It opens no sockets and no files. The console and the clock are callables, and devices come from outside.
"""

import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from nitro_vmm.accel import (
    Accelerator,
    Attended,
    Debug,
    EntryState,
    Exit,
    ExitReason,
    StopsAtPrograms,
    Vcpu,
    VmState,
)
from nitro_vmm.devices.virtio import VirtioDevice
from nitro_vmm.errors import HostError
from nitro_vmm.machine.board import Board, BoardState
from nitro_vmm.machine.bus import AddressSpace
from nitro_vmm.machine.memory import Memory
from nitro_vmm.machine.program import MachineOverError, Program


class End(Enum):
    """How a machine came to its end; the values are for people."""

    POWER_OFF = "powered off"
    REBOOT = "rebooted"
    HALTED = "halted for good"
    TRIPLE_FAULT = "crashed with a triple fault"
    CRASHED = "crashed"
    STOPPED = "was stopped"


class Ending(NamedTuple):
    """The end of a machine."""

    end: End
    """How."""
    details: str = ""
    """More about a crash, for people."""


class MachineState(NamedTuple):
    """What a saved machine keeps besides its memory."""

    vm: VmState
    """Processors and interrupt controllers."""
    board: BoardState
    """Devices."""


ENDS = {
    ExitReason.HALTED: End.HALTED,
    ExitReason.TRIPLE_FAULT: End.TRIPLE_FAULT,
    ExitReason.CRASHED: End.CRASHED,
}


class Machine:
    """One enclave's machine.

    Add devices, load a kernel into the memory, then call `run` in a thread of its own. All other methods may
    be called from any other thread.

    Args:
        memory: Its RAM.
        accelerator: What runs it.
        console: Called with what the guest prints, in a processor's thread; it may wait, because the bus lock
            is not held.
        console_ready: Called when the console takes input again after it has refused some.
        processors: How many processors it has.
        wall_clock_ns: Nanoseconds since 1970.

    Raises:
        HostError: The accelerator cannot run on this host.
    """

    def __init__(
        self,
        memory: Memory,
        accelerator: Accelerator,
        *,
        console: Callable[[bytes], None],
        console_ready: Callable[[], None],
        processors: int = 1,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        bus = AddressSpace()
        self._memory = memory
        self._vm = accelerator.create_vm(memory.ram, bus, processors=processors)
        self.board: Board = Board(
            bus,
            memory.guest,
            self._vm.line,
            signal_on_write=self._vm.signal_on_write,
            share_word=self._vm.share_word,
            wall_clock_ns=wall_clock_ns,
            console=console,
            console_ready=console_ready,
            power_off=lambda: self._finish(Ending(End.POWER_OFF)),
            reset=lambda: self._finish(Ending(End.REBOOT)),
        )
        """The devices."""
        self.on_debug_stop: Callable[[], None] = lambda: None
        """Called when the guest stands at a debugger's breakpoint or has done its step, in a processor's
        thread; `pause` then stops the devices, too, and `resume` lets all go on."""
        self.entered: threading.Event = threading.Event()
        """Set when `run` has put the first processor at its first instruction."""
        self._changed = threading.Condition()
        self._ending: Ending | None = None
        self._paused = False
        self._at_page: Callable[[], None] = lambda: None
        self._first_program: Callable[[Program], None] | None = None
        self._visited: StopsAtPrograms | None = None
        """The processor that the thread runs in which the first program is looked at."""
        self._offered: StopsAtPrograms | None = None
        """One that has come to a program meanwhile, and that this thread should run instead."""
        self._failure: BaseException | None = None
        self._running = 0
        """How many processors are within `Vcpu.run`."""

    @property
    def kvm_clock(self) -> bool:
        """Whether the guest has kvm-clock."""
        return self._vm.kvm_clock

    @property
    def debug(self) -> Debug | None:
        """What a debugger needs of the processors; `None` where the accelerator has no such thing."""
        return self._vm.vcpus[0].debug()

    def reserve_virtio(self, name: str) -> None:
        """See `Board.reserve_virtio`."""
        self.board.reserve_virtio(name)

    def add_virtio(
        self, name: str, device: VirtioDevice, *, on_driver: Callable[[], None] = lambda: None
    ) -> None:
        """See `Board.add_virtio`."""
        self.board.add_virtio(name, device, on_driver=on_driver)

    def settle(self) -> None:
        """See `Board.settle`: every reserved device has been added.

        Raises:
            StateError: One cannot go on from where it was saved.
        """
        self._vm.locked(self.board.settle)

    def attend(self, device: Attended) -> None:
        """See `Vm.attend`."""
        self._vm.attend(device)

    def locked(self, function: Callable[[], None]) -> None:
        """Call a function that touches devices under the bus lock; not for a processor's thread."""
        self._vm.locked(function)

    def type(self, data: bytes) -> int:
        """Give the console input; returns how many bytes it took, from the start."""
        taken = 0

        def receive() -> None:
            nonlocal taken
            taken = self.board.serial.receive(data)

        self._vm.locked(receive)
        return taken

    def run(self, entry: EntryState | None) -> Ending:
        """Run the guest to its end, in this thread and, if it has several processors, in more.

        Args:
            entry: Where the kernel begins; `None` goes on from what was restored.
        """
        first, *others = self._vm.vcpus
        if entry is not None:
            first.enter(entry)
        self.entered.set()
        threads = [threading.Thread(target=self._run_vcpu, args=(vcpu,), daemon=True) for vcpu in others]
        for thread in threads:
            thread.start()
        try:
            self._run_vcpu(first)
        finally:
            self._finish(Ending(End.CRASHED, "a processor's thread failed"))  # unless it has ended otherwise
            for thread in threads:
                thread.join()
            self._vm.close()
        if self._failure is not None:
            raise self._failure
        assert self._ending is not None  # noqa: S101 - `_finish` has set it
        return self._ending

    def close(self) -> None:
        """Give back what the machine holds, if it was never run; `run` does it by itself."""
        self._vm.close()

    def stop(self) -> None:
        """End the machine: `run` returns soon, whatever the guest does."""
        self._finish(Ending(End.STOPPED))

    def pause(self) -> bool:
        """Let the guest stand still; returns when it does.

        Returns:
            Whether it does; false when the machine has ended.
        """
        with self._changed:
            self._paused = True
        self._kick()
        with self._changed:
            self._changed.wait_for(lambda: self._ending is not None or not self._running)
            if self._ending is not None:
                return False
        self._vm.locked(self.board.pause)
        return True

    def resume(self) -> None:
        """Let the guest go on after `pause`."""
        self._vm.locked(self.board.resume)
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def state(self) -> MachineState:
        """What to save besides the memory, so that `restore` goes on from here; while the guest is paused."""
        saved: list[MachineState] = []
        self._vm.locked(lambda: saved.append(MachineState(self._vm.state(), self.board.state())))
        return saved[0]

    def restore(self, state: MachineState) -> None:
        """Go on from a saved machine, whose memory is restored; instead of an entry state, before `run`.

        Raises:
            StateError: The state is of another machine, or cannot be. This machine must not run then.
        """
        self._vm.locked(lambda: self._restore(state))

    def _restore(self, state: MachineState) -> None:
        # The controllers first: a device that drives its line high must not look like an edge to them.
        self._vm.restore(state.vm)
        self.board.restore(state.board)

    def change_generation(self, number: bytes) -> None:
        """Tell a guest with ACPI that it lives once more; see `GenerationId.change`."""
        self._vm.locked(lambda: self.board.generation_id.change(number))

    def at_first_program(self, function: Callable[[Program], None]) -> None:
        """Have a function called once, before the first instruction of the guest's first program.

        It is called in the processor's thread while the guest stands still; in a restored machine whose
        processor stands there already, before anything runs. It may `pause` the machine and take its state.

        Args:
            function: What to call. What it raises ends `run`.

        Raises:
            HostError: This accelerator does not notice programs.
        """
        vcpu = self._vm.vcpus[0]
        if not isinstance(vcpu, StopsAtPrograms) or not vcpu.watch_programs(wanted=True):
            raise HostError("this accelerator does not notice when the guest's first program starts")
        self._first_program = function

    def at_page(self, address: int, function: Callable[[], None]) -> None:
        """Have a function called once, soon after the guest has touched a page; see `at_first_program`.

        Args:
            address: See `StopsAtPrograms.watch_page`.
            function: What to call.

        Raises:
            HostError: This accelerator does not notice it.
        """
        vcpu = self._vm.vcpus[0]
        if not isinstance(vcpu, StopsAtPrograms) or not vcpu.watch_page(address):
            raise HostError("this accelerator does not notice which memory the guest touches")
        self._at_page = function

    def _run_vcpu(self, vcpu: Vcpu) -> None:
        try:
            if isinstance(vcpu, StopsAtPrograms) and vcpu.program is not None:
                vcpu = self._stand_at_program(vcpu)
            while True:
                reason = self._run_until_exit(vcpu).reason
                if reason is ExitReason.PAGE:
                    self._at_page()
                elif isinstance(vcpu, StopsAtPrograms):
                    vcpu = self._stand_at_program(vcpu)
        except MachineOverError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._failure = error
            self._finish(Ending(End.CRASHED, "a processor's thread failed"))

    def _stand_at_program(self, vcpu: StopsAtPrograms) -> StopsAtPrograms:
        """A processor stands at a program; returns the one that this thread is to run from now on."""
        with self._changed:
            function, self._first_program = self._first_program, None
            if function is not None:
                self._visited = vcpu
        if function is None:
            return self._hand_over(vcpu)
        try:
            function(Program(vcpu, self._memory.guest, self._go_on_to_program))
        finally:
            with self._changed:
                vcpu, self._visited = self._visited or vcpu, None
                self._changed.notify_all()
        vcpu.watch_programs(wanted=False)
        return vcpu

    def _go_on_to_program(self) -> StopsAtPrograms:
        """Let the guest go on until a processor stands at a program; for the thread that looks at one."""
        while True:
            assert self._visited is not None  # noqa: S101 - this thread has set it
            if self._run_until_exit(self._visited).reason is ExitReason.PROGRAM:
                return self._visited
            with self._changed:
                if self._offered is not None:
                    self._visited, self._offered = self._offered, None
                    self._changed.notify_all()
                    return self._visited

    def _hand_over(self, vcpu: StopsAtPrograms) -> StopsAtPrograms:
        """Exchange a processor that stands at a program for the one of the thread that looks at one.

        After a system call the kernel may let a program go on, on another processor. That must not run away.

        Returns:
            The processor that this thread has now; its own one where nobody looks any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._offered is None or self._visited is None)
            visited = self._visited
            if visited is None:
                return vcpu
            self._offered = vcpu
        visited.kick()
        with self._changed:
            self._changed.wait_for(lambda: self._offered is not vcpu or self._visited is None)
            if self._offered is vcpu:
                self._offered = None
                self._changed.notify_all()
                return vcpu
            return visited

    def _run_until_exit(self, vcpu: Vcpu) -> Exit:
        """Run a processor until it stops for a reason that is not the machine's end.

        Returns:
            Why it has stopped: at a program or a page, or because another one is offered in its place.

        Raises:
            MachineOverError: The machine has ended.
        """
        while self._may_run():
            exit_ = vcpu.run()
            with self._changed:
                self._running -= 1
                self._paused = self._paused or exit_.reason is ExitReason.DEBUG
                self._changed.notify_all()
            if exit_.reason in {ExitReason.PROGRAM, ExitReason.PAGE}:
                return exit_
            if exit_.reason is ExitReason.DEBUG:
                self.on_debug_stop()
            elif exit_.reason is not ExitReason.KICKED:
                self._finish(Ending(ENDS[exit_.reason], exit_.details))
            elif self._offered is not None and vcpu is self._visited:
                return exit_
        raise MachineOverError("the machine has ended")

    def _may_run(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ending is not None or not self._paused)
            if self._ending is not None:
                return False
            self._running += 1
            return True

    def _finish(self, ending: Ending) -> None:
        with self._changed:
            if self._ending is None:
                self._ending = ending
            self._changed.notify_all()
        self.board.give_up_reserved()  # a processor that waits for a device holds the bus lock
        self._kick()

    def _kick(self) -> None:
        # Not under `_changed`, because a kick takes the bus lock, under which a device may end the machine.
        for vcpu in self._vm.vcpus:
            vcpu.kick()
