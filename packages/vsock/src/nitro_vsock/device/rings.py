"""The rings of a guest's driver, and the order in which they are served."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from nitro_vsock.device.coalescing import Coalescing
from nitro_vsock.device.connections import Connections
from nitro_vsock.device.counters import Counters
from nitro_vsock.device.events import send_transport_reset
from nitro_vsock.device.packet import Op
from nitro_vsock.device.receive import Receiver
from nitro_vsock.device.receive_ring import ReceiveRing
from nitro_vsock.device.state import VsockState
from nitro_vsock.device.transmit import Transmitter
from nitro_vsock.errors import ChainError, QueueError
from nitro_vsock.virtio.split_queue import SplitQueue

if TYPE_CHECKING:
    from nitro_vsock.plain_config import VsockSettings

BAD_CHAINS_MAX: Final = 1024
"""After so many bad chains the guest's driver is taken for broken, and the device stops."""


HELD_PACKETS_MAX: Final = 16
"""So many packets at once show a guest that may need its descriptors soon."""


class Pace:
    """Who serves the rings, and when."""

    TURN: Final = 0
    """The thread of `VsockEngine.turn` or `run`, beside the guest."""
    KICKED: Final = 1
    """The guest's own thread, at a kick. The guest goes on at once, and is looked at again when it halts."""
    HALTED: Final = 2
    """The guest's own thread, while the guest waits."""


class Vring(NamedTuple):
    """A virtqueue that was started: its ring, the eventfd that kicks write, and its interrupt."""

    queue: SplitQueue
    kick_fd: int
    call: Callable[[], None]


class _BadChains:
    """Counts the chains that break the rules, since the rings were attached.

    It is not a part of `Rings`, because a method of `Rings` in the hands of its own parts would be a cycle,
    which keeps guest memory mapped until the garbage collector comes.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._count = 0

    def note(self) -> None:
        """Take note of one.

        Raises:
            QueueError: It was one too many.
        """
        self._counters.bad_chains += 1
        self._count += 1
        if self._count >= BAD_CHAINS_MAX:
            raise QueueError(f"{BAD_CHAINS_MAX} bad descriptor chains, the driver is broken", queue="vsock")


class Rings:
    """The rings of a guest's driver, and what serves them.

    Args:
        config: The guest's address.
        connections: The guest's connections.
        coalescing: What holds back the transmit ring's interrupt.
        receive: The receive queue.
        transmit: The transmit queue.
        event: The event queue, if the driver set up one.
    """

    def __init__(
        self,
        config: "VsockSettings",
        connections: Connections,
        coalescing: Coalescing,
        *,
        receive: Vring,
        transmit: Vring,
        event: Vring | None,
    ) -> None:
        self._table = connections.table
        self._delivery = connections.delivery
        self._coalescing = coalescing
        self._receive = receive
        self._transmit = transmit
        self._event = event
        self._silent = 0
        """How many packets the guest may send without a kick when it goes on after a halt.

        Linux reports its credit when a program has read, and a moment later the program writes: one kick is
        enough for both. But a guest that is asked for a connection answers with its first packet.
        """
        self._owes_interrupt = False
        """The driver wants to hear of the receive ring, and the interrupt is held back."""
        self._kicked = False
        """Whether the guest has kicked since it was asked to. What it sends after that comes silently."""
        self._bad_chains = _BadChains(connections.counters)
        self._ring = ReceiveRing(receive.queue, self._bad_chains.note)
        self._receiver = Receiver(
            self._ring,
            table=connections.table,
            endings=connections.endings,
            credit_wait=connections.credit_wait,
            counters=connections.counters,
        )
        self._transmitter = Transmitter(
            config,
            transmit.queue,
            table=connections.table,
            dialer=connections.dialer,
            delivery=connections.delivery,
            endings=connections.endings,
            credit_wait=connections.credit_wait,
            sibling_credit=connections.sibling_credit,
            counters=connections.counters,
            note_bad_chain=self._bad_chains.note,
        )
        self.calls: list[Callable[[], None]] = []
        """Interrupts to be raised when the engine's lock was released."""
        receive.queue.disable_notifications()  # until buffers are missing, kicks for new ones tell us nothing

    def kick_fds(self) -> list[int]:
        """The eventfds to wait for."""
        vrings = (self._receive, self._transmit, self._event)
        return [vring.kick_fd for vring in vrings if vring is not None and vring.kick_fd >= 0]

    def serve(self, pace: int) -> bool:
        """Serve the transmit ring and then the receive ring, once; true if more may follow at once.

        Args:
            pace: Who does it, and when: a `Pace`.

        Raises:
            QueueError: A ring is broken.
        """
        busy = self._transmitter.batch()
        if pace != Pace.TURN:
            busy = self._take_note(pace)
        # Published before the receive ring is filled, so that the guest has its descriptors back when it gets
        # the answer and writes the next packet.
        if self._transmit.queue.publish():
            self._coalescing.hold(self._transmit.call)
        busy |= self._receiver.batch()
        self._publish_receive(pace)
        return busy

    def _publish_receive(self, pace: int) -> None:
        """Publish the receive ring, and interrupt for it, unless that can wait for the next interrupt.

        It can while the guest halts and no program of it waits for what was sent. That is the end of each
        connection that the guest has closed. If the next one begins within a moment, one interrupt does.
        """
        self._owes_interrupt &= self._coalescing.holds
        self._owes_interrupt |= self._receive.queue.publish()
        if not self._owes_interrupt:
            return
        one_line = self._receive.call == self._transmit.call
        if pace != Pace.TURN and one_line and not self._receiver.awaited:
            self._coalescing.hold(self._receive.call)
            return
        self._owes_interrupt = False
        self.calls.append(self._receive.call)
        if one_line:
            self._coalescing.take()  # the driver looks at all of its queues

    def _take_note(self, pace: int) -> bool:
        """Learn how the guest sends; true if it may run out of descriptors."""
        sent, op = self._transmitter.taken, self._transmitter.last_op
        self._kicked |= pace == Pace.KICKED
        if sent:
            self._receiver.has_asked = False
        if sent == 1 and op == Op.CREDIT_UPDATE:
            self._silent = 1
        elif sent == 1 and not self._kicked:
            self._silent = 0  # there should have been a kick for it
        return sent >= HELD_PACKETS_MAX or self._transmit.queue.has_chains

    def settle(self, *, busy: bool, pace: int) -> bool:
        """End a round: ask for kicks if it found nothing more to do, and raise the interrupts that are due.

        Args:
            busy: Whether there is more to do at once.
            pace: See `serve`.

        Returns:
            Whether there is, after all.
        """
        # While looking for events pays, a look at doubtful sockets waits for the sleep
        # (`VsockEngine._before_sleep`).
        if not busy and self._table.doubtful and not self._coalescing.spin_pays:
            busy = self._delivery.look_at_doubtful()
        busy = busy or (pace != Pace.KICKED and self.arm(pace))
        due = self._coalescing.take_due(busy=busy, patient=pace != Pace.TURN)
        if due is not None:
            self.calls.append(due)
        return busy

    def arm(self, pace: int) -> bool:
        """Before sleep: ask for the kicks that matter; true if what they would tell is here already."""
        # While the table is choked we would not take packets, so kicks for them would only wake us in vain.
        silent = self._silent if pace == Pace.HALTED and not self._receiver.has_asked else 0
        more = not self._table.choked and self._transmit.queue.enable_notifications(silent=silent)
        if self._receiver.starved:
            more |= self._receive.queue.enable_notifications()
        if not more:
            self._kicked = False
        return more

    def send_transport_reset(self) -> tuple[bool, bool]:
        """Tell the guest that all connections are lost.

        Returns:
            Whether that is done, and whether another look may find a buffer for it.

        Raises:
            QueueError: The ring is broken.
        """
        vring = self._event
        if vring is None:
            return True, False  # a driver without an event queue cannot be told
        try:
            sent = send_transport_reset(vring.queue)
        except ChainError:
            self._publish(vring)
            self._bad_chains.note()
            return False, True
        if not sent:
            return False, vring.queue.enable_notifications()
        self._publish(vring)
        return True, False

    def take_all(self) -> None:
        """Take what is in the transmit ring, but no more than it holds, or a busy guest would keep us here.

        Raises:
            QueueError: The ring is broken.
        """
        queue = self._transmit.queue
        first = queue.next_available
        while (queue.next_available - first) & 0xFFFF < queue.size:
            before = queue.next_available
            self._transmitter.batch()
            if queue.next_available == before:
                break
        if queue.publish():
            self._coalescing.hold(self._transmit.call)

    def take_calls(self) -> list[Callable[[], None]]:
        """The interrupts to be raised now."""
        calls, self.calls = self.calls, []
        return calls

    def interrupt(self) -> None:
        """Raise the interrupts of rings that were served before, because who did so may have owed them."""
        for vring in (self._receive, self._transmit):
            if vring.queue.next_available:
                vring.call()

    def release(self) -> None:
        """Give the unused receive buffers back, so that ``next_available`` says where to go on."""
        self._ring.release()

    def state(self) -> VsockState:
        """How far the rings were served."""
        receive = self._receive.queue.state()
        return VsockState(
            # Buffers that were taken and hold nothing yet count as not taken, or the guest would lose them.
            receive._replace(next_available=(receive.next_available - self._ring.held) & 0xFFFF),
            self._transmit.queue.state(),
            None if self._event is None else self._event.queue.state(),
        )

    def _publish(self, vring: Vring) -> None:
        if vring.queue.publish():
            self.calls.append(vring.call)
