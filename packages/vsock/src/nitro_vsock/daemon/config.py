"""What the daemon can be told, as one typed model; flags, ``--vm`` and YAML files all end up here.

Names are those of vhost-device-vsock, so that command lines and files move over unchanged. Its YAML has
underscores and its ``--vm`` allows dashes; here both allow both.
"""

import difflib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationError,
    model_validator,
)

from nitro_vsock.errors import UsageError, VsockError
from nitro_vsock.host_side import PORT_SUFFIX_BYTES_MAX, UNIX_PATH_BYTES_MAX
from nitro_vsock.packet import ANY_CID, HOST_CID, PARENT_CID


class ConfigFileError(VsockError):
    """A configuration file or allow-list that is not one; the message names the file and the key."""


Port = Annotated[int, Field(ge=0, le=ANY_CID - 1)]
TcpPort = Annotated[int, Field(ge=1, le=0xFFFF)]


def _split(value: object) -> object:
    """``a+b`` as vhost-device-vsock writes lists."""
    return [part for part in value.split("+") if part] if isinstance(value, str) else value


def _listed_port(value: object) -> object:
    return [value] if isinstance(value, int) and not isinstance(value, bool) else _split(value)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8") from None
    return text


def _host(name: str) -> str:
    try:
        name.encode("idna")  # as the resolver will
    except UnicodeError:
        raise ValueError(f"{name!r} is no host name") from None
    return name


class Target(_Frozen):
    """A TCP endpoint."""

    host: Annotated[str, AfterValidator(_host)]
    """Name or address; IPv6 addresses in brackets in the text form."""
    port: TcpPort

    @classmethod
    def parse(cls, text: str) -> Self:
        """``HOST:PORT``.

        Raises:
            ValueError: It is something else.
        """
        host, separator, port = text.rpartition(":")
        if not separator or not host or not port.isdecimal() or any(map(str.isspace, host)):
            raise ValueError(f"{text!r} is not HOST:PORT")
        return cls(host=host.removeprefix("[").removesuffix("]"), port=int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Proxied(_Frozen):
    """A port of the host that guests reach a TCP endpoint through."""

    port: Port
    target: Target

    @classmethod
    def parse(cls, value: object) -> object:
        """``PORT=HOST:PORT``; anything but text is returned as it is."""
        if not isinstance(value, str):
            return value
        port, separator, target = value.partition("=")
        if not separator:
            raise ValueError(f"{value!r} is not PORT=HOST:PORT")
        return {"port": port, "target": Target.parse(target)}


def _socket_path(path: Path) -> Path:
    if not path.name:
        raise ValueError(f"'{path}' names no file")
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise ValueError(f"a unix socket's path has at most {UNIX_PATH_BYTES_MAX} bytes")
    if "\0" in str(path):
        raise ValueError("a path has no zero bytes")
    _utf8(str(path))
    return path


def _with_port(path: Path) -> Path:
    longest = UNIX_PATH_BYTES_MAX - PORT_SUFFIX_BYTES_MAX
    if len(os.fsencode(path)) > longest:
        raise ValueError(f"a path that gets ports appended has at most {longest} bytes")
    return path


SocketPath = Annotated[Path, AfterValidator(_socket_path)]


class Published(_Frozen):
    """A port of a guest that the host's programs reach over TCP or a plain unix socket."""

    listen: Annotated[
        Annotated[Target, Tag("tcp")] | Annotated[SocketPath, Tag("unix")],
        Discriminator(lambda value: "unix" if isinstance(value, str | Path) else "tcp"),
    ]
    port: Port

    @classmethod
    def parse(cls, value: object) -> object:
        """``tcp:HOST:PORT=GUEST_PORT`` or ``unix:PATH=GUEST_PORT``; what is no text is returned as it is."""
        if not isinstance(value, str):
            return value
        listen, _, port = value.rpartition("=")
        kind, separator, place = listen.partition(":")
        if not separator or kind not in {"tcp", "unix"} or not place:
            raise ValueError(f"{value!r} is neither tcp:HOST:PORT=GUEST_PORT nor unix:PATH=GUEST_PORT")
        return {"listen": Target.parse(place) if kind == "tcp" else Path(place), "port": port}


def _guest_cid(cid: int) -> int:
    if cid <= HOST_CID or cid >= ANY_CID:
        raise ValueError(f"must be from 3 to {ANY_CID - 1}: 0, 1, 2 and {ANY_CID} are reserved")
    return cid


class VmConfig(_Frozen):
    """One guest: its address, its vhost-user socket and where its connections go."""

    guest_cid: Annotated[int, AfterValidator(_guest_cid)] = 3
    """The guest's address; 0, 1, 2 and 2**32-1 are reserved (virtio 1.3 §5.10.4)."""
    socket: SocketPath | None = None
    """Where QEMU or another front-end connects."""
    uds_path: Annotated[SocketPath, AfterValidator(_with_port)] | None = None
    """Host programs connect here and write ``CONNECT PORT``; guests reach listeners at ``PATH_PORT``."""
    forward_cid: Annotated[int, Field(ge=0, le=ANY_CID - 1)] | None = None
    """Guests' connections to whatever CID, but those of other guests, go to the same port of this CID of the
    host's vsock, instead of ``uds_path``."""
    forward_listen: Annotated[frozenset[Port], BeforeValidator(_listed_port)] = frozenset()
    """Ports of the host's own vsock on which connections to the guest's same port are accepted."""
    tx_buffer_size: Annotated[int, Field(ge=4096, le=16 << 20)] = 262144
    """Bytes that a guest may have under way on each connection."""
    queue_size: Annotated[int, Field(ge=2, le=32768)] = 1024
    """Longest virtqueue accepted, in descriptors."""
    groups: Annotated[
        frozenset[Annotated[str, AfterValidator(_utf8)]],
        BeforeValidator(_split),
        PlainSerializer(sorted, return_type=list[str]),
    ] = frozenset({"default"})
    """Guests that share a group reach each other by CID."""
    host_cids: Annotated[
        frozenset[Annotated[int, Field(ge=HOST_CID, le=ANY_CID - 1)]], BeforeValidator(_listed_port)
    ] = frozenset({HOST_CID, PARENT_CID})
    """Addresses at which guests reach the host: 2 everywhere, 3 in Nitro Enclaves."""
    ok_port: Literal["host", "guest"] = "guest"
    """Which port ``OK`` names: the guest's, as vhost-device-vsock, or the host's, as Firecracker."""
    seqpacket: bool = False
    """Offer SEQPACKET connections beside streams."""
    connections: Annotated[int, Field(ge=1)] = 1023
    """Connections at a time."""
    half_open: Annotated[int, Field(ge=1)] = 64
    """Host programs at a time that connected and have not said yet where to."""
    buffered_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    """Bytes held for host programs that do not read, all connections of the guest together."""
    spin_us: Annotated[int, Field(ge=0, le=1000)] | None = None
    """How long to look for more work before going to sleep, while that is worth it: quicker answers, for more
    CPU. None: 30 for the only guest of a process that has more than one processor, else 0."""
    publish: tuple[Annotated[Published, BeforeValidator(Published.parse)], ...] = ()
    """Ports of the guest that are reached over TCP or plain unix sockets."""
    proxy: tuple[Annotated[Proxied, BeforeValidator(Proxied.parse)], ...] = ()
    """TCP endpoints that the guest may reach, by port of the host."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.uds_path is not None and (self.forward_cid is not None or self.forward_listen):
            raise ValueError("uds_path excludes forward_cid and forward_listen")
        if not self.local_cids:
            raise ValueError("host_cids has none but the guest's own address, so it could reach nobody")
        if self.queue_size & (self.queue_size - 1):
            raise ValueError("queue_size must be a power of two")
        ports = [proxied.port for proxied in self.proxy]
        if len(ports) != len(set(ports)):
            raise ValueError("proxy has a port twice")
        return self

    @property
    def local_cids(self) -> frozenset[int]:
        """`host_cids` but the guest's own, which may be 3 where nobody means Nitro."""
        return self.host_cids - {self.guest_cid}


class AllowedEndpoint(_Frozen):
    """One entry of vsock-proxy's allow-list."""

    address: str
    port: TcpPort


class Allowlist(_Frozen):
    """The file of AWS's vsock-proxy: which TCP endpoints `proxy` may name."""

    allowlist: tuple[AllowedEndpoint, ...]


class DaemonConfig(_Frozen):
    """Everything that one daemon serves; see `supervisor.split` for its processes."""

    vms: tuple[VmConfig, ...]
    stats: SocketPath | None = None
    """Unix socket that tells the counters: JSON, or Prometheus text to HTTP requests."""
    allow_uid: frozenset[Annotated[int, Field(ge=0, le=0xFFFF_FFFE)]] = frozenset()
    """Users besides root and our own who may connect to the unix sockets, but `stats`."""
    proxy_allowlist: Allowlist | None = None
    """If given, every target of `proxy` must be in it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.vms:
            raise ValueError("vms is empty, there is nobody to serve")
        places: dict[object, list[str]] = defaultdict(list)
        for vm in self.vms:
            places[vm.guest_cid].append("guest_cid")
            places[vm.socket].append("socket")
            places[vm.uds_path].append("uds_path")
            for published in vm.publish:
                places[published.listen].append("publish")
        places[self.stats].append("stats")
        places.pop(None, None)
        for place, names in places.items():
            if len(names) > 1:
                raise ValueError(f"{' and '.join(dict.fromkeys(names))} {place} is given {len(names)} times")
        return self


Location = Sequence[int | str]
"""Where a value is: keys, and positions in lists."""


def dotted(location: Location) -> str:
    """A location as it is in a file."""
    return ".".join(map(str, location))


def problems(error: ValidationError, name: Callable[[Location], str] = dotted) -> str:
    """What pydantic found, in one line: where and what, in the words of people.

    Args:
        error: Of a `DaemonConfig`, or an `Allowlist`.
        name: What its user calls the place of a value.
    """
    return "; ".join(
        ": ".join(filter(None, (name(found["loc"]), _explained(found, _keys(error.title, found["loc"])))))
        for found in error.errors()
    )


def _explained(found: Mapping[str, Any], keys: Sequence[str]) -> str:
    context = found.get("ctx", {})
    match found["type"]:
        case "extra_forbidden":
            likely = difflib.get_close_matches(str(found["loc"][-1]), keys, n=1) or keys
            return "there is no such key" + (f", but {', '.join(likely)}" if likely else "")
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return "must be a whole number"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "tuple_type" | "frozen_set_type" | "list_type":
            return "must be a list"
        case "model_type":
            return "must be a mapping"
        case "path_type" | "string_type":
            return "must be a text"
        case _:
            message: str = found["msg"]
            return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _keys(model: str, location: Location) -> Sequence[str]:
    """The keys that there are at a place of the model; none of those that are evident there."""
    match model, *location:
        case [DaemonConfig.__name__, _]:
            return list(DaemonConfig.model_fields)
        case [DaemonConfig.__name__, "vms", int(), _]:
            return list(VmConfig.model_fields)
        case _:
            return ()


def _underscored(mapping: Mapping[object, object]) -> dict[str, object]:
    return {str(key).replace("-", "_"): value for key, value in mapping.items()}


def parse_vm(text: str) -> dict[str, object]:
    """The value of ``--vm``: ``key=value`` pairs with commas between.

    Raises:
        UsageError: A part is no pair, or a key comes twice. What the keys mean is checked with the config.
    """
    found: dict[str, object] = {}
    for part in text.split(","):
        key, separator, value = part.partition("=")
        name = key.replace("-", "_")
        if not separator:
            raise UsageError(f"--vm: {part!r} is not key=value")
        if name in {"publish", "proxy"}:
            found[name] = (*found.get(name, ()), value)  # type: ignore[misc]
        elif name in found:
            raise UsageError(f"--vm: {name} is given twice")
        else:
            found[name] = value
    return found


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which no key comes twice, as it may not (YAML 1.2 §3.2.1.1) and PyYAML allows."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Look at the keys of a mapping, before those of others are merged in."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = str(key.value).replace("-", "_")
            if name in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
            seen.add(name)
        return node


def read_yaml(path: Path) -> dict[str, object]:
    """A YAML file's mapping, keys with underscores.

    Raises:
        ConfigFileError: It cannot be read, or holds something else.
    """
    try:
        content = yaml.load(path.read_bytes(), _Loader)  # noqa: S506 (a safe one)
    except OSError as error:
        raise ConfigFileError(f"{path}: cannot read it: {error.strerror}") from error
    except (
        *(yaml.YAMLError, RecursionError, ValueError),
        *(LookupError, AttributeError, TypeError),  # of PyYAML, for tags with values that are none
    ) as error:
        raise ConfigFileError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigFileError(f"{path}: not a mapping at its top")
    return _underscored(content)


def read_config(path: Path) -> dict[str, object]:
    """The keys of a ``--config`` file, unchecked but for its shape.

    Raises:
        ConfigFileError: It cannot be read, or its ``vms`` is not a list of mappings.
    """
    content = read_yaml(path)
    vms = content.get("vms")
    if not isinstance(vms, list) or not all(isinstance(vm, dict) for vm in vms):
        raise ConfigFileError(f"{path}: needs a list 'vms' with one mapping for each guest")
    return {**content, "vms": [_underscored(vm) for vm in vms]}


def read_allowlist(path: Path) -> Allowlist:
    """The allow-list of vsock-proxy.

    Raises:
        ConfigFileError: It cannot be read or holds something else.
    """
    try:
        return Allowlist.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigFileError(f"{path}: {problems(error)}") from error
