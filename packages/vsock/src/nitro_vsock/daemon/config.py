"""What the daemon can be told, as one typed model. Flags, ``--vm`` and YAML files all end up here.

A guest's settings are those of its engine (`nitro_vsock.VsockConfig`), with their names, and what only a
daemon has. Where vhost-device-vsock has a setting, its name is used, so that command lines and files move
over unchanged. Its YAML has underscores and its ``--vm`` allows dashes; here both allow both.
"""

import os
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from nitro_vsock.addresses import ANY_CID, DEFAULT_HOST_CIDS, HOST_CID
from nitro_vsock.config import VsockConfig
from nitro_vsock.host.allowlist import Allowlist
from nitro_vsock.host.endpoints import FrozenModel, Port, Proxied, Published, SocketPath, check_utf8
from nitro_vsock.host.unix import PORT_SUFFIX_BYTES_MAX, UNIX_PATH_BYTES_MAX


def _split(value: object) -> object:
    """``a+b`` is how vhost-device-vsock writes lists."""
    return [part for part in value.split("+") if part] if isinstance(value, str) else value


def _listed_number(value: object) -> object:
    return [value] if isinstance(value, int) and not isinstance(value, bool) else _split(value)


def _with_port(path: Path) -> Path:
    longest = UNIX_PATH_BYTES_MAX - PORT_SUFFIX_BYTES_MAX
    if len(os.fsencode(path)) > longest:
        raise ValueError(f"a path that gets ports appended has at most {longest} bytes")
    return path


def _guest_cid(cid: int) -> int:
    if cid <= HOST_CID or cid >= ANY_CID:
        raise ValueError(f"must be from 3 to {ANY_CID - 1}: 0, 1, 2 and {ANY_CID} are reserved")
    return cid


Cids = Annotated[
    frozenset[Annotated[int, Field(ge=HOST_CID, le=ANY_CID - 1)]], BeforeValidator(_listed_number)
]
Uids = Annotated[frozenset[Annotated[int, Field(ge=0, le=0xFFFF_FFFE)]], BeforeValidator(_listed_number)]
Groups = Annotated[
    frozenset[Annotated[str, AfterValidator(check_utf8)]],
    BeforeValidator(_split),
    PlainSerializer(sorted, return_type=list[str]),
]


class VmConfig(VsockConfig):
    """One guest: its device, its vhost-user socket and where its connections go."""

    guest_cid: Annotated[int, AfterValidator(_guest_cid)] = 3
    """The guest's address; 0, 1, 2 and 2**32-1 are reserved (virtio 1.3 §5.10.4)."""
    socket: SocketPath | None = None
    """Where QEMU or another front-end connects."""
    uds_path: Annotated[SocketPath, AfterValidator(_with_port)] | None = None
    """Host programs connect here and write ``CONNECT PORT``; guests reach listeners at ``PATH_PORT``."""
    forward_cid: Annotated[int, Field(ge=0, le=ANY_CID - 1)] | None = None
    """The guest's connections to every CID but those of other guests go to the same port of this CID of the
    host's vsock, instead of to ``uds_path``."""
    forward_listen: Annotated[frozenset[Port], BeforeValidator(_listed_number)] = frozenset()
    """Ports of the host's own vsock on which connections to the guest's same port are accepted."""
    queue_size: Annotated[int, Field(ge=2, le=32768)] = 1024
    """The longest virtqueue that is accepted, in descriptors."""
    groups: Groups = frozenset({"default"})
    """Guests that share a group reach each other by CID."""
    host_cids: Cids = DEFAULT_HOST_CIDS
    """Addresses at which guests reach the host: 2 everywhere, 3 in Nitro enclaves."""
    heartbeat: bool = False
    """Answer the heartbeat of a Nitro enclave, unless a program listens at ``uds_path`` for port 9000."""
    allow_uid: Uids = frozenset()
    """More users whose programs may connect to this guest's unix sockets."""
    publish: tuple[Annotated[Published, BeforeValidator(Published.parse)], ...] = ()
    """Ports of the guest that are reached over TCP or plain unix sockets."""
    proxy: tuple[Annotated[Proxied, BeforeValidator(Proxied.parse)], ...] = ()
    """TCP endpoints that the guest may reach, by port of the host."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.uds_path is not None and (self.forward_cid is not None or self.forward_listen):
            raise ValueError("uds_path excludes forward_cid and forward_listen")
        if self.heartbeat and self.forward_cid is not None:
            raise ValueError("forward_cid excludes heartbeat: that goes to port 9000 of the same CID")
        if self.queue_size & (self.queue_size - 1):
            raise ValueError("queue_size must be a power of two")
        ports = [proxied.port for proxied in self.proxy]
        if len(ports) != len(set(ports)):
            raise ValueError("proxy has a port twice")
        return self

    def engine(self, *, allow_uid: frozenset[int], spin_us: int) -> VsockConfig:
        """What this guest's engine is told.

        Args:
            allow_uid: Users who may connect to the sockets of all guests.
            spin_us: How long to look for work before sleep, if that was not chosen.
        """
        update: dict[str, object] = {"allow_uid": self.allow_uid | allow_uid}
        if self.spin_us is None:
            update["spin_us"] = spin_us
        if self.forward_cid is not None:
            update["any_cid"] = True
            if self.forward_cid >= HOST_CID:
                update["host_cids"] = self.local_cids | {self.forward_cid}
        return self.model_copy(update=update)


class DaemonConfig(FrozenModel):
    """Everything that one daemon serves; see `supervisor.split` for its processes."""

    vms: tuple[VmConfig, ...]
    """The guests."""
    stats: SocketPath | None = None
    """Unix socket that tells the counters: JSON, or Prometheus text to HTTP requests."""
    allow_uid: Uids = frozenset()
    """Users besides root and our own whose programs may connect to all unix sockets but ``stats``."""
    proxy_allowlist: Allowlist | None = None
    """If given, every target of ``proxy`` must be in it."""

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
