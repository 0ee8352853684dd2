"""The vhost-user protocol, both ends of it.

A machine whose device is another process uses `FrontendSocket`. A process that is such a device feeds the
messages of one session to a `Backend`, which needs no socket, and starts and stops its device as the
front-end says.
"""

from nitro_vsock.vhost_user.backend import Backend, Device, Ring
from nitro_vsock.vhost_user.errors import RefusedError, VhostUserError
from nitro_vsock.vhost_user.frontend import Frontend, FrontendSocket, SharedRegion, SharedRing

__all__ = [
    "Backend",
    "Device",
    "Frontend",
    "FrontendSocket",
    "RefusedError",
    "Ring",
    "SharedRegion",
    "SharedRing",
    "VhostUserError",
]
