"""What names the two ends of a vsock connection: context ids (CIDs), ports and the kind of socket.

A CID is a machine's address, a port one program of it, as in vsock(7). Both are 32 bits wide.
"""

from enum import IntEnum
from typing import Final

ANY_CID: Final = 0xFFFF_FFFF
"""VMADDR_CID_ANY of vsock(7): no machine's address."""
HOST_CID: Final = 2
"""The host, for every guest (virtio 1.3 §5.10.4)."""
PARENT_CID: Final = 3
"""The parent instance, for an AWS Nitro enclave."""
DEFAULT_HOST_CIDS: Final = frozenset({HOST_CID, PARENT_CID})
"""Where a guest finds the host unless it is told otherwise."""

PORT_MAX: Final = 0xFFFF_FFFE
"""The next number is VMADDR_PORT_ANY of vsock(7), which stands for a port that the system chooses."""


class SocketType(IntEnum):
    """Whether a connection carries a stream of bytes or messages (virtio 1.3 §5.10.6.2)."""

    STREAM = 1
    SEQPACKET = 2
