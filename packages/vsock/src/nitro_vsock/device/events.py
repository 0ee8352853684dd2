"""The event queue of a socket device, on which it tells the guest that its connections are lost."""

import struct
from typing import Final

from nitro_vsock.errors import ChainError
from nitro_vsock.virtio.split_queue import SplitQueue

# virtio_vsock_event (virtio 1.3 §5.10.6.7): id
EVENT: Final = struct.Struct("<I")
EVENT_BYTES: Final = 4
EVENT_TRANSPORT_RESET: Final = 0


def send_transport_reset(queue: SplitQueue) -> bool:
    """Put a transport reset event into the guest's next event buffer (virtio 1.3 §5.10.6.7).

    The guest closes its connections, reads its CID again and keeps its listeners. The caller publishes the
    queue and interrupts the guest.

    Args:
        queue: The event queue.

    Returns:
        False if the guest has offered no buffer; call again when it has.

    Raises:
        ChainError: The buffer cannot hold an event. It was pushed unused; call again for the next one.
        QueueError: The queue is broken.
    """
    chain = queue.pop()
    if chain is None:
        return False
    room = sum(map(len, chain.writable))
    if room < EVENT_BYTES:
        queue.push(chain.head, 0)
        raise ChainError(
            f"an event has {EVENT_BYTES} bytes, its buffer {room}", queue=queue.name, head=chain.head
        )
    event = EVENT.pack(EVENT_TRANSPORT_RESET)
    for segment in chain.writable:
        part = event[: len(segment)]
        segment[: len(part)] = part
        event = event[len(part) :]
    queue.push(chain.head, EVENT_BYTES)
    return True
