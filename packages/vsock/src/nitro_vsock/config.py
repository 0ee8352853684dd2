"""What can be chosen about one guest's vsock device."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nitro_vsock.packet import ANY_CID, HOST_CID, PARENT_CID

Cid = Annotated[int, Field(ge=HOST_CID, lt=ANY_CID)]


class VsockConfig(BaseModel):
    """One guest's vsock device: its address, its host side and its limits."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    guest_cid: Annotated[int, Field(ge=3, lt=ANY_CID)] = 16
    """The guest's address; 0-2 and 2**32-1 are reserved (virtio 1.3 §5.10.4), 3 is a Nitro enclave's
    parent."""

    uds_path: Path | None = None
    """Unix socket that host programs connect to and say ``CONNECT port``; with ``_port`` appended, the
    sockets that guest connections to that port go to. None: no unix sockets."""

    host_cids: frozenset[Cid] = frozenset({HOST_CID, PARENT_CID})
    """The addresses at which the guest finds the host. A guest that has one of the default ones itself
    finds the host at the other."""

    any_cid: bool = False
    """The guest finds the host also at every other address that is no guest's."""

    source_cid: Cid | None = None
    """The address that the guest sees host connections come from; None: the lowest of ``host_cids``."""

    ok_port: Literal["guest", "host"] = "guest"
    """The number after ``OK``: the port asked for, as vhost-device-vsock says, or the port given to the
    host's end, as Firecracker says."""

    seqpacket: bool = False
    """Offer SEQPACKET connections. On the host they are SOCK_SEQPACKET unix sockets: guest connections go
    to ``uds_path`` with ``_port`` appended as streams do, host programs connect to ``uds_path`` with
    ``.seqpacket`` appended."""

    groups: frozenset[str] = frozenset({"default"})
    """Guests of one process reach each other if they have a group in common."""

    buf_alloc: Annotated[int, Field(ge=4096, le=16 << 20)] = 256 << 10
    """Bytes per connection that the guest may send ahead of a slow host program."""

    connections_max: Annotated[int, Field(ge=1)] = 1023
    """Connections at a time; the guest's next one is reset, a host program's next one closed."""

    half_open_max: Annotated[int, Field(ge=1)] = 64
    """Host programs at a time that connected and did not finish their ``CONNECT`` line."""

    buffered_bytes_max: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    """Bytes held for slow host programs, all connections together; near it, new connections get small
    windows, beyond it, the connection that would hold more is reset."""

    handshake_timeout_s: Annotated[float, Field(gt=0)] = 2.0
    """How long a host program may take for its ``CONNECT`` line."""

    connect_timeout_s: Annotated[float, Field(gt=0)] = 2.0
    """How long either side may take to accept a connection; Firecracker uses the same."""

    close_timeout_s: Annotated[float, Field(gt=0)] = 2.0
    """How long the guest may take to agree to the end of a connection; Firecracker uses the same."""

    linger_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """How long a host program may take to read what a guest sent before it closed the connection."""

    spin_s: Annotated[float, Field(ge=0, le=0.01)] = 0.0
    """How long to look for work before going to sleep in `VsockEngine.run`, as long as looking pays: some
    0.00003 make answers faster where a processor is to spare. An idle guest costs nothing either way."""

    allowed_uids: frozenset[int] = frozenset()
    """Users besides root and the one we run as whose programs may connect to the unix sockets."""

    @model_validator(mode="after")
    def _check_cids(self) -> Self:
        if "host_cids" in self.model_fields_set and self.guest_cid in self.host_cids:
            raise ValueError(f"guest_cid {self.guest_cid} is one of host_cids, choose another")
        if not self.local_cids:
            raise ValueError("host_cids is empty, the guest could reach nobody")
        if self.source_cid is not None and self.source_cid not in self.local_cids:
            raise ValueError(f"source_cid {self.source_cid} is not one of host_cids")
        return self

    @property
    def local_cids(self) -> frozenset[int]:
        """``host_cids`` without the guest's own address."""
        return self.host_cids - {self.guest_cid}
