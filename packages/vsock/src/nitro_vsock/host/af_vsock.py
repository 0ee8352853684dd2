"""The host's own vsock (AF_VSOCK), where the host has one.

A guest's connections go to the same port of one CID of the host's vsock, whatever CID the guest asked for.
This is how QEMU's nitro-enclave machine is used. Listeners take connections for the guest's same port.
"""

import socket

from nitro_vsock.addresses import SocketType
from nitro_vsock.errors import HostError

_TYPES = {SocketType.STREAM: socket.SOCK_STREAM, SocketType.SEQPACKET: socket.SOCK_SEQPACKET}


def _vsock(kind: int) -> socket.socket:
    return socket.socket(socket.AF_VSOCK, kind | socket.SOCK_NONBLOCK)


def check_available() -> None:
    """Check that this host has AF_VSOCK.

    Raises:
        HostError: It has not.
    """
    try:
        _vsock(socket.SOCK_STREAM).close()
    except OSError as error:
        raise HostError(
            f"this host has no AF_VSOCK ({error.strerror})",
            hint="load the kernel module vsock_loopback or vhost_vsock, or use --uds-path",
        ) from error


class AfVsockHostSide:
    """A `HostSide` that joins a guest's connection to port P with port P of ``cid`` on the host's vsock."""

    def __init__(self, cid: int) -> None:
        self._cid = cid

    def connect(self, port: int, socket_type: SocketType) -> socket.socket:
        """A socket that is connecting to ``port``; see `HostSide.connect`."""
        sock = _vsock(_TYPES[socket_type])
        try:
            sock.connect((self._cid, port))
        except BlockingIOError:
            pass
        except OSError:
            sock.close()
            raise
        return sock


def listen(port: int, *, backlog: int = 128) -> socket.socket:
    """A non-blocking listener on a port of the host's own vsock.

    Raises:
        HostError: There is no AF_VSOCK, or the port is taken.
    """
    check_available()
    listener = _vsock(socket.SOCK_STREAM)
    try:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise HostError(f"cannot listen at port {port} of the host's vsock: {error.strerror}") from error
    return listener
