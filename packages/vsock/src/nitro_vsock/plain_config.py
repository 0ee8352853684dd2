"""A device's configuration that nobody has to check, for programs that know what they say.

`VsockConfig` is a pydantic model, and importing pydantic takes longer than all the rest of a device. The
device itself reads fields only, so it takes either of the two.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from nitro_vsock.addresses import DEFAULT_HOST_CIDS

if TYPE_CHECKING:
    from nitro_vsock.config import VsockConfig


class PlainVsockConfig(NamedTuple):
    """The fields of `VsockConfig`, with the same meanings and defaults. Nothing is checked."""

    guest_cid: int = 16
    uds_path: Path | None = None
    host_cids: frozenset[int] = DEFAULT_HOST_CIDS
    any_cid: bool = False
    source_cid: int | None = None
    ok_port: str = "guest"
    seqpacket: bool = False
    groups: frozenset[str] = frozenset({"default"})
    tx_buffer_size: int = 256 << 10
    connections_max: int = 1023
    half_open_max: int = 64
    buffered_bytes_max: int = 64 << 20
    handshake_timeout_s: float = 2.0
    connect_timeout_s: float = 2.0
    close_timeout_s: float = 2.0
    linger_timeout_s: float = 30.0
    spin_us: int | None = None
    allow_uid: frozenset[int] = frozenset()

    @property
    def local_cids(self) -> frozenset[int]:
        """See `VsockConfig.local_cids`."""
        return self.host_cids - {self.guest_cid}


VsockSettings: TypeAlias = "VsockConfig | PlainVsockConfig"
"""What a device is told."""
