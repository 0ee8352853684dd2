"""Where processor, APICs, timer and other threads meet: the bus lock, and who tells whom of an interrupt.

The guest runs without the lock. Each of its accesses to a device takes it (`Interrupts.enter`), and so does
every other thread that touches devices (`Interrupts.locked`). On the way in, an interrupt that the processor
has taken meanwhile is acknowledged to the local APIC; on the way out, the next one is offered.

While an offer stands and the guest runs, nobody can know which vector the processor is about to read. So only
the processor's own thread may change or withdraw an offer; others leave it, and the more urgent interrupt
follows when the guest signals the end of the first.

While the processor waits in HLT, its thread serves the device that it attends (`Attended`). So what comes for
the guest from outside wakes one thread, which passes it on and runs the guest. So it is with the timer, which
has a thread of its own for as long as the guest runs.
"""

import os
import select
import threading
from collections.abc import Callable
from typing import Final

from nitro_vmm.accel import Attended
from nitro_vmm.accel.unicorn.cpu import Cpu
from nitro_vmm.address_map import IO_APIC_ID, IO_APIC_PINS, LOCAL_APIC_ID
from nitro_vmm.devices.io_apic import IoApic
from nitro_vmm.devices.local_apic import LocalApic
from nitro_vmm.devices.timer_fd import TimerFd

AT_ONCE_NS: Final = 1
NEVER_NS: Final = 1 << 63
KICK_RETRY_NS = 20_000_000
"""How often a kick is repeated until the processor has stopped, because Unicorn forgets a request to stop
that comes while it is about to start."""
HELD_MS: Final = 1
"""How long the guest waits at most for an interrupt that the device holds back."""
LONG_NS: Final = 1_000_000
"""After a wait of this length the next is expected to be as long, and the processor's thread waits for the
timer, too. Taking it over and giving it back costs as much as a small packet, so it is not done for less."""


class Interrupts:
    """Both APICs, the timer's thread, and the bus lock.

    Args:
        timer_hz: What the local APIC's timer counts at.
        clock_ns: A monotonic clock, nanoseconds.
    """

    def __init__(self, *, timer_hz: int, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self.local_apic = LocalApic(clock_ns, timer_hz, self._wake_timer, apic_id=LOCAL_APIC_ID)
        self.io_apic = IoApic(self.local_apic.accept, pins=IO_APIC_PINS, io_apic_id=IO_APIC_ID)
        self.local_apic.end_of_level_interrupt = self.io_apic.end_of_interrupt
        self._cpu: Cpu | None = None
        self._lock = threading.RLock()
        self._offered: int | None = None
        self._asleep = False
        """The processor's thread waits for `_wake_fd`."""
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_fd_lock = threading.Lock()
        """Held while the descriptor must stay open; taken after the bus lock."""
        self._alone = self._make_poll()
        self._beside: tuple[Attended, select.poll] | None = None
        self._timer = TimerFd()
        """Fires when the local APIC's does. To set it costs less than to wake a thread with its own alarm."""
        self._gate = select.epoll()
        """What the timer's thread waits for: the timer, unless the processor's thread has taken it over."""
        self._gate.register(self._timer.fileno(), select.EPOLLIN)
        self._waits_long = False
        self._sleeps_until_ns = 0
        self._closed = self._kicked = self._masked = False
        self._timer_thread = threading.Thread(target=self._run_timer, name="local APIC timer", daemon=True)

    def attach(self, cpu: Cpu) -> None:
        """Interrupt this processor from now on."""
        self._cpu = cpu
        self._timer_thread.start()

    def attend(self, device: Attended) -> None:
        """Serve this device while the processor waits in HLT, from its next wait on.

        Nothing happens after `close`: a guest may have ended before its devices were there.
        """
        # Not under the bus lock: the guest may hold it while it waits for this very device.
        with self._wake_fd_lock:
            if self._wake_fd >= 0:
                poll = self._make_poll()
                poll.register(device.work_fileno(), select.POLLIN)
                self._beside = device, poll

    def _make_poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        return poll

    def close(self) -> None:
        """End the timer's thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._timer.set(AT_ONCE_NS)
        if self._timer_thread.is_alive():
            self._timer_thread.join()
        with self._lock, self._wake_fd_lock:
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
                self._gate.close()
                self._timer.close()
                self._wake_fd = -1

    def enter(self) -> None:
        """Begin an access of the guest, in the processor's thread: the guest stands still."""
        self._lock.acquire()
        self._acknowledge()

    def leave(self) -> None:
        """End an access of the guest."""
        self.settle()
        self._lock.release()

    def locked(self, function: Callable[[], None]) -> None:
        """Call a function that touches devices, in any other thread."""
        with self._lock:
            self._acknowledge()
            function()
            if self._offered is None:
                self.settle()

    def settle(self) -> None:
        """Offer what the local APIC has for the processor; under the lock, while the guest stands still."""
        vector = None if self._masked else self.local_apic.pending_vector()
        if vector == self._offered:
            return
        cpu = self._cpu
        if cpu is None:
            return
        self._offered = vector
        if vector is None:
            cpu.withdraw()
        else:
            cpu.offer(vector)
            self._wake()

    def wait(self) -> bool:
        """Sleep in HLT until there is an interrupt, or a kick; true when it is an interrupt."""
        device, poll = self._beside or (None, self._alone)
        if device is not None:
            device.claim(mine=True)
        began_ns = self._clock_ns()
        takes_timer = self._waits_long
        if takes_timer:
            self._gate.modify(self._timer.fileno(), 0)
            poll.register(self._timer.fileno(), select.POLLIN)
        try:
            while not self._must_run():
                # Without the lock: who interrupts the guest from now on finds `_asleep` set, and wakes us.
                self._sleep_in_hlt(device, poll)
            return not self._kicked
        finally:
            self._asleep = False
            if takes_timer:
                poll.unregister(self._timer.fileno())
                self._gate.modify(self._timer.fileno(), select.EPOLLIN)
            self._waits_long = self._clock_ns() - began_ns >= LONG_NS
            if device is not None:
                device.claim(mine=False)

    def _must_run(self) -> bool:
        with self._lock:
            self._asleep = False
            if self._kicked:
                return True
            self._acknowledge()
            self.settle()
            self._asleep = self._offered is None
            return not self._asleep

    def _sleep_in_hlt(self, device: Attended | None, poll: select.poll) -> None:
        ready = poll.poll(HELD_MS if device is not None and device.holds else None)
        self._asleep = False  # what the device or the timer interrupts us for need not wake us
        descriptors = [fd for fd, _ in ready]
        if self._wake_fd in descriptors:
            os.eventfd_read(self._wake_fd)
        elif self._timer.fileno() in descriptors:
            self._look_at_timer()
        elif device is not None and ready:
            device.assist()
        elif device is not None:
            device.release()

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            os.eventfd_write(self._wake_fd, 1)

    def withdraw(self) -> None:
        """Let nothing be offered, so that a state can be taken; while the processor stands still."""
        with self._lock:
            self._acknowledge()
            if self._offered is not None and self._cpu is not None:
                self._cpu.withdraw()
                self._offered = None

    def mask(self, masked: bool) -> None:  # noqa: FBT001 - there is nothing else to say
        """Hold interrupts back, or let them through again; while the processor stands still."""
        with self._lock:
            self._masked = masked
            self._acknowledge()
            self.settle()

    def kick(self) -> None:
        """Let the processor stop soon, wherever it is; from any thread."""
        with self._lock:
            self._kicked = True
            if self._cpu is not None:
                self._cpu.stop()
            self._wake()
            if not self._closed:
                self._timer.set(AT_ONCE_NS)  # the timer's thread repeats the request until `take_kick`

    def take_kick(self) -> bool:
        """Whether the processor was to stop; in its thread, which has stopped and may run again."""
        if not self._kicked:
            return False  # as nearly always, and without the lock: a kick that comes now stops the processor
        with self._lock:
            self._kicked = False
            if self._cpu is not None:
                self._cpu.forget_stop()
            return True

    def _acknowledge(self) -> None:
        if self._offered is not None and self._cpu is not None and self._cpu.taken:
            vector, self._offered = self._offered, None
            self.local_apic.acknowledge(vector)
            if self._beside is not None and self._beside[0].holds:
                self._beside[0].release()  # the guest is at something else

    def _wake_timer(self) -> None:
        deadline_ns = self.local_apic.deadline_ns
        if deadline_ns is not None and deadline_ns < self._sleeps_until_ns and not self._closed:
            self._sleeps_until_ns = deadline_ns
            self._timer.set(max(deadline_ns - self._clock_ns(), AT_ONCE_NS))

    def _run_timer(self) -> None:
        while self._look_at_timer():
            self._gate.poll()

    def _look_at_timer(self) -> bool:
        """Do what is due by the timer, in whatever thread it has woken; false at the end."""
        with self._lock:
            if not self._closed:
                self._acknowledge()
                now_ns = self._clock_ns()
                self.local_apic.tick(now_ns)
                if self._offered is None:
                    self.settle()
                deadline_ns = self.local_apic.deadline_ns
                if self._kicked and self._cpu is not None:
                    self._cpu.stop()
                    retry_ns = now_ns + KICK_RETRY_NS
                    deadline_ns = retry_ns if deadline_ns is None else min(deadline_ns, retry_ns)
                if deadline_ns is None:
                    self._sleeps_until_ns = NEVER_NS
                    self._timer.set(0)
                else:
                    self._sleeps_until_ns = deadline_ns
                    self._timer.set(max(deadline_ns - now_ns, AT_ONCE_NS))
            return not self._closed
