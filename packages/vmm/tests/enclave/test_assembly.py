"""How an enclave's devices are told of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nitro_vmm import EnclaveConfig
from nitro_vmm.address_map import ram_ranges
from nitro_vmm.enclave.assembly import _regions, _vsock_config
from nitro_vsock.vhost_user import SharedRegion

GIB = 1 << 30


def test_the_parent_is_at_cid_3() -> None:
    """As AWS documents it; a plain vsock device says 2."""
    config = EnclaveConfig(eif_path=Path("a.eif"), cid=77, vsock_path=Path("/tmp/v"), seqpacket=True)  # noqa: S108

    vsock = _vsock_config(config)

    assert (vsock.source_cid, vsock.guest_cid, vsock.uds_path, vsock.seqpacket) == (
        *(3, 77, config.vsock_path),
        True,
    )


def test_a_daemon_maps_the_guests_memory_from_one_file() -> None:
    hardware: Any = SimpleNamespace(memory=SimpleNamespace(ranges=ram_ranges(5 * GIB)), memory_fd=9)

    regions = _regions(hardware)

    assert regions == [
        SharedRegion(0, 0xD000_0000, descriptor=9, file_offset=0),
        SharedRegion(4 * GIB, 5 * GIB - 0xD000_0000, descriptor=9, file_offset=0xD000_0000),
    ]
