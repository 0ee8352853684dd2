"""virtio-vsock: the virtqueue, the device of one guest, and a vhost-user daemon around it.

The device is a `VsockEngine`. Whoever emulates the machine (or speaks vhost-user with it) hands it the
rings that the guest's driver set up; the engine does the rest, in `VsockEngine.turn`, whenever its descriptor
is readable::

    engine = VsockEngine(VsockConfig(guest_cid=16, uds_path=Path("/run/enclave/vsock")))
    engine.attach(
        receive=Vring(SplitQueue(memory, receive_layout, event_idx=True), receive_kick_fd, interrupt),
        transmit=Vring(SplitQueue(memory, transmit_layout, event_idx=True), transmit_kick_fd, interrupt),
        event=None,
    )
    while serving:
        delay = engine.turn()
        if delay == 0:
            await trio.lowlevel.checkpoint()  # there is more to do; let others have a word first
        else:
            with trio.move_on_after(math.inf if delay is None else delay):
                await trio.lowlevel.wait_readable(engine.fileno())

Or give it a thread: `VsockEngine.run` sleeps in the engine's own epoll until `VsockEngine.stop`.

**Between machine and engine.** `attach`, `detach`, `close`, `connect`, `adopt`, `reset_transport` and
`counters` may be called from any thread; `turn` and `run` by one thread at a time. Any other thread may
`assist` the one that calls `turn`, such as a processor's that has kicked. A kick is a write to the
ring's eventfd; the engine does not read it. `Vring.call` raises the interrupt: it is called in the thread
of `turn`, holding no lock of the engine, and may do a little more than the driver asked for. After `detach`
no view of guest memory is left, and ``SplitQueue.next_available`` of the queues is what GET_VRING_BASE
wants. `VsockEngine.failure` says why a ring that the guest broke is not served any more (then:
DEVICE_NEEDS_RESET, or the vring's error eventfd). ``detach(keep_connections=True)`` is for a guest that is
only paused. `VsockEngine.state` and `restore` are for a machine that is saved and goes on later, perhaps in
another process: its connections are gone then, and the guest is told. `VsockEngine.features` and
`config_space` are the device's own.

**Where guest connections go.** To a `HostSide`: an object whose ``connect(port, socket_type)`` returns a
non-blocking socket (connected, or connecting: TCP, AF_VSOCK), or a `concurrent.futures.Future` of one that
any thread may complete (so a task may resolve names and dial first), or raises `OSError`, and the guest is
refused. The default is `UnixHostSide`: the unix socket ``uds_path_PORT``. Where the host side raises
`FileNotFoundError`, the service registered for that port, if any, gets one end of a socket pair. Other
guests of the process are reached through a `VsockRouter` that the engines share, if they have one of
`VsockConfig.groups` in common.

**Connections into the guest.** Programs connect to ``uds_path`` and say ``CONNECT port``;
`VsockEngine.connect(port)` gives a socket joined with the guest's port; `VsockEngine.adopt(sock, port)`
joins one that some listener accepted, and tells through ``on_result`` whether the guest took it.

The names are imported when they are first used, so that the command line need not wait for all of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nitro_vsock.addresses import HOST_CID, PARENT_CID, SocketType
    from nitro_vsock.config import VsockConfig
    from nitro_vsock.device.counters import Counters
    from nitro_vsock.device.dialing import Service
    from nitro_vsock.device.engine import VsockEngine
    from nitro_vsock.device.events import send_transport_reset
    from nitro_vsock.device.rings import Vring
    from nitro_vsock.device.router import VsockRouter
    from nitro_vsock.device.state import VsockState
    from nitro_vsock.errors import (
        ChainError,
        GuestMemoryError,
        HostError,
        QueueError,
        UsageError,
        VsockError,
    )
    from nitro_vsock.host.sides import HostSide
    from nitro_vsock.host.unix import UnixHostSide, UnixListener
    from nitro_vsock.plain_config import PlainVsockConfig
    from nitro_vsock.virtio.features import (
        F_EVENT_IDX,
        F_INDIRECT_DESC,
        F_VERSION_1,
        VSOCK_F_NO_IMPLIED_STREAM,
        VSOCK_F_SEQPACKET,
        VSOCK_F_STREAM,
    )
    from nitro_vsock.virtio.guest_memory import GuestMemory
    from nitro_vsock.virtio.queue_state import SplitQueueState
    from nitro_vsock.virtio.split_queue import Chain, QueueLayout, SplitQueue

_HOMES = {
    "addresses": (
        "HOST_CID",
        "PARENT_CID",
        "SocketType",
    ),
    "config": ("VsockConfig",),
    "device.counters": ("Counters",),
    "device.dialing": ("Service",),
    "device.engine": ("VsockEngine",),
    "device.events": ("send_transport_reset",),
    "device.rings": ("Vring",),
    "device.router": ("VsockRouter",),
    "device.state": ("VsockState",),
    "errors": (
        "ChainError",
        "GuestMemoryError",
        "HostError",
        "QueueError",
        "UsageError",
        "VsockError",
    ),
    "host.sides": ("HostSide",),
    "host.unix": (
        "UnixHostSide",
        "UnixListener",
    ),
    "plain_config": ("PlainVsockConfig",),
    "virtio.features": (
        "F_EVENT_IDX",
        "F_INDIRECT_DESC",
        "F_VERSION_1",
        "VSOCK_F_NO_IMPLIED_STREAM",
        "VSOCK_F_SEQPACKET",
        "VSOCK_F_STREAM",
    ),
    "virtio.guest_memory": ("GuestMemory",),
    "virtio.queue_state": ("SplitQueueState",),
    "virtio.split_queue": (
        "Chain",
        "QueueLayout",
        "SplitQueue",
    ),
}

__all__ = [
    "F_EVENT_IDX",
    "F_INDIRECT_DESC",
    "F_VERSION_1",
    "HOST_CID",
    "PARENT_CID",
    "VSOCK_F_NO_IMPLIED_STREAM",
    "VSOCK_F_SEQPACKET",
    "VSOCK_F_STREAM",
    "Chain",
    "ChainError",
    "Counters",
    "GuestMemory",
    "GuestMemoryError",
    "HostError",
    "HostSide",
    "PlainVsockConfig",
    "QueueError",
    "QueueLayout",
    "Service",
    "SocketType",
    "SplitQueue",
    "SplitQueueState",
    "UnixHostSide",
    "UnixListener",
    "UsageError",
    "Vring",
    "VsockConfig",
    "VsockEngine",
    "VsockError",
    "VsockRouter",
    "VsockState",
    "send_transport_reset",
]


if not TYPE_CHECKING:  # a type checker reads the imports above, and should refuse names that are not there

    def __getattr__(name: str) -> object:
        for module, names in _HOMES.items():
            if name in names:
                found = getattr(import_module(f"nitro_vsock.{module}"), name)
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
