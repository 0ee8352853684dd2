"""What can go wrong between the two ends of a vhost-user socket."""

from nitro_vsock.errors import VsockError


class VhostUserError(VsockError):
    """The peer does not keep to the vhost-user protocol, or asks for what this end cannot do.

    The session has to end; what was agreed in it cannot be relied on any more.
    """


class RefusedError(VhostUserError):
    """One request cannot be done. With NEED_REPLY the front-end is told so, and the session goes on."""
