"""Where a guest may connect to and where its ports are published, as models and as text for command lines.

`Endpoint` is an address to listen at, `Destination` one to connect to: ``0.0.0.0`` makes sense as the first
and not as the second. A host name is checked for its form only, because it may resolve later or elsewhere.
"""

import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from nitro_vsock.addresses import PORT_MAX
from nitro_vsock.errors import HostError
from nitro_vsock.host.unix import UNIX_PATH_BYTES_MAX

Port = Annotated[int, Field(ge=0, le=PORT_MAX)]
"""A vsock port."""
NUMBER_AT_END = re.compile(r"^([^:]*\.)?(\d+|0[xX][0-9a-fA-F]*)\.?$")
"""A name of this form is an IPv4 address, or wrong (WHATWG URL, "ends in a number")."""

TcpPort = Annotated[int, Field(ge=1, le=0xFFFF)]


class FrozenModel(BaseModel):
    """What all models of this package have in common."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True
    )


def check_utf8(text: str) -> str:
    """The same text, checked: it can be written as UTF-8.

    Raises:
        ValueError: It cannot, because an argument of the command line was not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8") from None
    return text


def _host(name: str) -> str:
    try:
        name.encode("idna")  # as the resolver will
    except UnicodeError:
        raise ValueError(f"{name!r} is not a host name") from None
    return name


def _socket_path(path: Path) -> Path:
    if not path.name:
        raise ValueError(f"'{path}' does not name a file")
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise ValueError(f"a unix socket's path has at most {UNIX_PATH_BYTES_MAX} bytes")
    if "\0" in str(path):
        raise ValueError("a path cannot hold a zero byte")
    check_utf8(str(path))
    return path


SocketPath = Annotated[Path, AfterValidator(_socket_path)]
"""The path of a unix socket."""


class Endpoint(FrozenModel):
    """A TCP address: a host name or IP address, and a port."""

    host: Annotated[str, AfterValidator(_host)]
    """Name or address. IPv6 addresses stand in brackets in the text form, and without them here."""
    port: TcpPort

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``HOST:PORT``.

        Raises:
            ValueError: The text is something else.
        """
        host, separator, port = text.rpartition(":")
        if not separator or not host or not port.isdecimal() or any(map(str.isspace, host)):
            raise ValueError(f"{text!r} is not HOST:PORT")
        return cls(host=host.removeprefix("[").removesuffix("]"), port=int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def addresses(where: Endpoint) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """The families and addresses of a name or address at which to listen; ``*`` is every address of the host.

    Raises:
        HostError: The name is unknown.
    """
    host = None if where.host == "*" else where.host
    try:
        found = socket.getaddrinfo(host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise HostError(f"cannot publish at {where}: {error.strerror}") from error
    return list(dict.fromkeys((family, (str(address[0]), int(address[1]))) for family, *_, address in found))


def _destination(host: str) -> str:
    if NUMBER_AT_END.match(host):
        # The resolver takes "16" for 0.0.0.16, which nobody means: it is a CID where a host has to stand.
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            meant = "a CID and not a host" if host.isdecimal() else "not an IPv4 address"
            raise ValueError(f"{host!r} is {meant}: proxies lead to TCP endpoints") from None
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host  # a name
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    reserved = address.version == 4 and address.is_reserved  # IPv6 has "reserved" blocks that are in use
    if address.is_unspecified or address.is_multicast or reserved or address in _THIS_NETWORK:
        raise ValueError(f"nobody can be connected to at {host}")
    return host


_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 1122 §3.2.1.3: only ever a source address


class Destination(Endpoint):
    """A TCP endpoint that can be connected to."""

    host: Annotated[str, AfterValidator(_host), AfterValidator(_destination)]
    """Name or address. A number alone is not a host, and some addresses are nobody's (0.0.0.0, multicast)."""


class Proxied(FrozenModel):
    """A port of the host through which guests reach a TCP endpoint."""

    port: Port
    target: Destination

    @classmethod
    def parse(cls, value: object) -> object:
        """Read ``PORT=HOST:PORT``. A value that is not text is returned as it is.

        Raises:
            ValueError: The text is something else.
        """
        if not isinstance(value, str):
            return value
        port, separator, target = value.partition("=")
        if not separator:
            raise ValueError(f"{value!r} is not PORT=HOST:PORT")
        return {"port": port, "target": Destination.parse(target)}


class Published(FrozenModel):
    """A port of a guest that the host's programs reach over TCP or a plain unix socket."""

    listen: Annotated[
        Annotated[Endpoint, Tag("tcp")] | Annotated[SocketPath, Tag("unix")],
        Discriminator(lambda value: "unix" if isinstance(value, str | Path) else "tcp"),
    ]
    """Where to listen: a TCP address, with the host ``*`` for all addresses, or the path of a unix socket."""
    port: Port
    """The guest's port."""

    @classmethod
    def parse(cls, value: object) -> object:
        """Read ``tcp:HOST:PORT=GUEST_PORT`` or ``unix:PATH=GUEST_PORT``.

        A value that is not text is returned as it is.

        Raises:
            ValueError: The text is something else.
        """
        if not isinstance(value, str):
            return value
        listen, _, port = value.rpartition("=")
        kind, separator, place = listen.partition(":")
        if not separator or kind not in {"tcp", "unix"} or not place:
            raise ValueError(f"{value!r} is neither tcp:HOST:PORT=GUEST_PORT nor unix:PATH=GUEST_PORT")
        return {"listen": Endpoint.parse(place) if kind == "tcp" else Path(place), "port": port}
