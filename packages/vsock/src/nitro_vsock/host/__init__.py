"""What is at the host's end of a guest's connections, and how programs of the host reach the guest.

None of it needs an engine, so that a machine emulator can use it as the daemon does:

* `HostSide` is what an engine asks for the other end of a guest's connection. `UnixHostSide` finds unix
  sockets, `AfVsockHostSide` the host's own vsock, `RefusingHostSide` nothing.
* `UnixListener` is a listening unix socket that only some users may connect to.
* `nitro_vsock.host.proxy.ProxyHostSide` lets the guest reach chosen TCP endpoints, and
  `nitro_vsock.host.publish.Publisher` lets the host's programs reach a port of the guest over TCP or a unix
  socket. Both run in trio and are imported by these names, so that whoever does not use trio need not load
  it.
* `Proxied` and `Published` are what they are told, as pydantic models with a text form for command lines.

The names are imported when they are first used, because models take time to make, and few guests have any.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nitro_vsock.host.af_vsock import AfVsockHostSide
    from nitro_vsock.host.allowlist import Allowlist
    from nitro_vsock.host.endpoints import Destination, Endpoint, Proxied, Published
    from nitro_vsock.host.sides import HostSide, RefusingHostSide
    from nitro_vsock.host.unix import UnixHostSide, UnixListener, allowed_users, may_connect

_HOMES = {
    "af_vsock": ("AfVsockHostSide",),
    "allowlist": ("Allowlist",),
    "endpoints": ("Destination", "Endpoint", "Proxied", "Published"),
    "sides": ("HostSide", "RefusingHostSide"),
    "unix": ("UnixHostSide", "UnixListener", "allowed_users", "may_connect"),
}

__all__ = [
    "AfVsockHostSide",
    "Allowlist",
    "Destination",
    "Endpoint",
    "HostSide",
    "Proxied",
    "Published",
    "RefusingHostSide",
    "UnixHostSide",
    "UnixListener",
    "allowed_users",
    "may_connect",
]


if not TYPE_CHECKING:  # a type checker reads the imports above, and should refuse names that are not there

    def __getattr__(name: str) -> object:
        for module, names in _HOMES.items():
            if name in names:
                found = getattr(import_module(f"nitro_vsock.host.{module}"), name)
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
