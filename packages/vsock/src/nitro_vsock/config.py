"""What can be chosen about one guest's vsock device."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nitro_vsock.addresses import ANY_CID, DEFAULT_HOST_CIDS, HOST_CID

Cid = Annotated[int, Field(ge=HOST_CID, lt=ANY_CID)]


class VsockConfig(BaseModel):
    """One guest's vsock device: its address, its host side and its limits."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    guest_cid: Annotated[int, Field(ge=3, lt=ANY_CID)] = 16
    """The guest's address. 0-2 and 2**32-1 are reserved (virtio 1.3 §5.10.4), and 3 is the parent of a Nitro
    enclave."""

    uds_path: Path | None = None
    """The unix socket at which host programs say ``CONNECT port``. The guest's connections to a port go to
    the socket with ``_port`` appended. `None`: no unix sockets."""

    host_cids: frozenset[Cid] = DEFAULT_HOST_CIDS
    """The addresses at which the guest finds the host: 2 everywhere, and 3 in Nitro enclaves. A guest that
    has one of these two itself finds the host at the other."""

    any_cid: bool = False
    """The guest also finds the host at every address that is no other guest's."""

    source_cid: Cid | None = None
    """The address that the guest sees host connections come from. `None`: the lowest of ``host_cids``, which
    is 2 by default; a Nitro enclave expects its parent, 3."""

    ok_port: Literal["guest", "host"] = "guest"
    """The number after ``OK``: the port that was asked for, as vhost-device-vsock says, or the port that the
    host's end was given, as Firecracker says."""

    seqpacket: bool = False
    """Offer SEQPACKET connections beside streams. On the host they are SOCK_SEQPACKET unix sockets. Guest
    connections go to ``uds_path`` with ``_port`` appended, as streams do; host programs connect to
    ``uds_path`` with ``.seqpacket`` appended."""

    groups: frozenset[str] = frozenset({"default"})
    """Guests of one process reach each other if they have a group in common."""

    tx_buffer_size: Annotated[int, Field(ge=4096, le=16 << 20)] = 256 << 10
    """Bytes that the guest may have under way on each connection, ahead of a slow host program. It is the
    ``buf_alloc`` of our packets (virtio 1.3 §5.10.6.3)."""

    connections_max: Annotated[int, Field(ge=1)] = 1023
    """Connections at a time. The guest's next one is reset, a host program's next one is closed."""

    half_open_max: Annotated[int, Field(ge=1)] = 64
    """Host programs at a time that have connected and not finished their ``CONNECT`` line."""

    buffered_bytes_max: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    """Bytes held for slow host programs, all connections together. Near this limit new connections get small
    windows, and beyond it the connection that would hold more is reset."""

    handshake_timeout_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds that a host program may take for its ``CONNECT`` line."""

    connect_timeout_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds that either side may take to accept a connection; Firecracker uses the same."""

    close_timeout_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds that the guest may take to agree to the end of a connection; Firecracker uses the same."""

    linger_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a host program may take to read what a guest sent before it closed the connection."""

    spin_us: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """How many microseconds `VsockEngine.run` looks for more work before it goes to sleep, while that is
    worth it. Some 30 make answers quicker, where a processor is to spare. An idle guest costs nothing either
    way. `None`: 0 here; the daemon chooses."""

    allow_uid: frozenset[int] = frozenset()
    """Users besides root and the one we run as whose programs may connect to the unix sockets."""

    @model_validator(mode="after")
    def _check_cids(self) -> Self:
        if self.guest_cid in self.host_cids and self.host_cids != DEFAULT_HOST_CIDS:
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
