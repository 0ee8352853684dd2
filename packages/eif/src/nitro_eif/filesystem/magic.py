"""The first bytes of what a ramdisk can be."""

from typing import Final

CPIO: Final = b"070701"
"""Of an archive's entries (Linux ``Documentation/driver-api/early-userspace/buffer-format.rst``)."""
CPIO_CHECKSUM: Final = b"070702"
"""The same with checksums."""
LZ4: Final = b"\x02!L\x18"
"""The legacy frame format, which is the one that Linux reads (lz4_Frame_format.md, "Legacy frame")."""

COMPRESSIONS: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x5d\0\0": "lzma",
    b"(\xb5/\xfd": "zstd",
    LZ4: "lz4",
    b"\x89LZO": "lzo",
}
"""The first bytes of each compression that Linux knows."""
