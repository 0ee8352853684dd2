"""Which TCP endpoints a proxy may lead to, in the form of AWS's vsock-proxy."""

import socket
from typing import ClassVar

from pydantic import ConfigDict

from nitro_vsock.errors import UsageError
from nitro_vsock.host.endpoints import Endpoint, FrozenModel, TcpPort


class AllowedEndpoint(FrozenModel):
    """One entry: a host name or address, and a port. Other keys are passed over, as vsock-proxy does."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore")

    address: str
    port: TcpPort


class Allowlist(FrozenModel):
    """The content of an allow-list file. Other keys are passed over here as well."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore")

    allowlist: tuple[AllowedEndpoint, ...]

    def check(self, target: Endpoint) -> None:
        """Check that a proxy may lead to ``target``.

        As with vsock-proxy, an entry allows it that has the same port and either the same name or an address
        in common. Names are resolved only if no entry has the same name.

        Raises:
            UsageError: No entry allows it.
        """
        addresses = [entry.address for entry in self.allowlist if entry.port == target.port]
        if any(address.lower() == target.host.lower() for address in addresses):
            return
        if addresses and (mine := _addresses(target.host)) and any(mine & _addresses(a) for a in addresses):
            return
        raise UsageError(
            f"{target} is not in the allow-list of the proxy",
            hint="add its address and port to the list, or leave the list out",
        )


def _addresses(host: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()
