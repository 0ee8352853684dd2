"""The numbers that drivers and devices have to agree on are those of the specification."""

from nitro_vsock import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_VERSION_1,
    VSOCK_F_NO_IMPLIED_STREAM,
    VSOCK_F_SEQPACKET,
    VSOCK_F_STREAM,
    SocketType,
)
from nitro_vsock.device.packet import HEADER, Header, Op, Sequence, Shutdown


def test_feature_bits() -> None:
    """Virtio 1.3 §6 and §5.10.3."""
    assert (F_INDIRECT_DESC, F_EVENT_IDX, F_VERSION_1) == (1 << 28, 1 << 29, 1 << 32)
    assert (VSOCK_F_STREAM, VSOCK_F_SEQPACKET, VSOCK_F_NO_IMPLIED_STREAM) == (1, 2, 4)


def test_operations_types_and_flags() -> None:
    """Virtio 1.3 §5.10.6."""
    operations = (Op.REQUEST, Op.RESPONSE, Op.RST, Op.SHUTDOWN, Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST)
    assert operations == (1, 2, 3, 4, 5, 6, 7)
    assert (SocketType.STREAM, SocketType.SEQPACKET) == (1, 2)
    assert (Shutdown.RECEIVE, Shutdown.SEND, Shutdown.BOTH) == (1, 2, 3)
    assert (Sequence.END_OF_MESSAGE, Sequence.END_OF_RECORD) == (1, 2)


def test_a_header_is_laid_out_as_specified() -> None:
    """Virtio 1.3 §5.10.6: little-endian, no padding."""
    header = Header(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)

    packed = header.pack()

    assert packed == b"".join(
        value.to_bytes(size, "little")
        for value, size in zip(header, (8, 8, 4, 4, 4, 2, 2, 4, 4, 4), strict=True)
    )
    assert HEADER.size == len(packed) == 44
