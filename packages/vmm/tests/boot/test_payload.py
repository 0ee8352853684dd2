import random
import shutil
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boot_images import COMMANDS, COMPRESSIONS, compress_with_command
from nitro_vmm.boot import payload
from nitro_vmm.boot.payload import decompress
from nitro_vmm.errors import ImageError

CONTENTS = random.Random(1).randbytes(70_000) + bytes(3_000_000) + b"\xe8\x10\x00\x00\x00code" * 10_000
MAGICS = (
    b"\x1f\x8b\x08",
    b"BZh9",
    b"\x5d\x00\x00",
    b"\xfd7zXZ\x00",
    b"\x02\x21\x4c\x18",
    b"\x28\xb5\x2f\xfd",
)


def unpack(packed: bytes, bytes_max: int = 1 << 24) -> bytes:
    return b"".join(decompress(memoryview(packed), offset=0x4000, bytes_max=bytes_max))


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_contents_come_back(name: str) -> None:
    assert unpack(COMPRESSIONS[name](CONTENTS)) == CONTENTS


@pytest.mark.parametrize("name", COMMANDS)
def test_contents_of_what_linux_builds_with_come_back(name: str) -> None:
    if shutil.which(COMMANDS[name][0]) is None:
        pytest.skip(f"{COMMANDS[name][0]} is not installed")
    assert unpack(compress_with_command(name, CONTENTS)) == CONTENTS


def test_lz4_contents_of_several_blocks_come_back() -> None:
    contents = bytes(payload.LZ4_BLOCK_BYTES_MAX) + b"and more"
    assert unpack(COMPRESSIONS["lz4"](contents)) == contents


@pytest.mark.parametrize("name", sorted(COMPRESSIONS.keys() - {"lz4"}))
def test_what_follows_the_compressed_data_is_ignored(name: str) -> None:
    assert unpack(COMPRESSIONS[name](b"kernel") + b"relocations") == b"kernel"


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_contents_of_just_the_bound_are_taken_and_one_more_is_not(name: str) -> None:
    packed = COMPRESSIONS[name](CONTENTS)

    assert len(unpack(packed, bytes_max=len(CONTENTS))) == len(CONTENTS)
    with pytest.raises(ImageError, match=f"the {name} payload holds more than the {len(CONTENTS) - 1} bytes"):
        unpack(packed, bytes_max=len(CONTENTS) - 1)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_bomb_ends_at_the_bound(name: str) -> None:
    bomb = COMPRESSIONS[name](bytes(20 << 20))
    with pytest.raises(ImageError, match="holds more than"):
        unpack(bomb, bytes_max=1 << 20)


@pytest.mark.parametrize("name", COMPRESSIONS)
@given(data=st.data())
def test_a_truncated_payload_is_an_image_error(name: str, data: st.DataObject) -> None:
    contents = b"kernel" * 1000
    packed = COMPRESSIONS[name](contents)
    appended = 0 if name == "gzip" else 4
    length = data.draw(st.integers(0, len(packed) - appended - 1))

    with pytest.raises(ImageError) as caught:
        unpack(packed[:length])
    assert caught.value.section == "kernel"
    assert caught.value.offset == 0x4000


@pytest.mark.parametrize("name", COMPRESSIONS)
@given(data=st.data())
def test_a_corrupt_payload_ends_in_contents_or_an_image_error(name: str, data: st.DataObject) -> None:
    packed = bytearray(COMPRESSIONS[name](b"kernel" * 1000))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(ImageError):
        unpack(bytes(packed))


@given(st.sampled_from(MAGICS), st.binary(max_size=512))
def test_any_bytes_are_a_payload_or_an_image_error(magic: bytes, rest: bytes) -> None:
    with suppress(ImageError):
        unpack(magic + rest, bytes_max=1 << 20)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\x89LZO\x00\x0d", "is compressed with lzo"),
        (b"\xde\xad\xbe\xef", "starts with de ad be ef"),
        (b"", "starts with nothing"),
    ],
)
def test_an_unknown_compression_is_named(start: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=f"{said}.*gzip, bzip2, lzma, xz, lz4, zstd"):
        unpack(start)


def test_an_lz4_payload_whose_length_is_wrong_is_cut_short() -> None:
    packed = COMPRESSIONS["lz4"](b"kernel")
    with pytest.raises(ImageError, match="cut short after 6 bytes"):
        unpack(packed[:-4] + struct.pack("<I", 7))


@pytest.mark.parametrize("name", sorted(COMPRESSIONS.keys() - {"lz4", "gzip"}))
def test_contents_come_in_pieces_of_a_mebibyte_at_most(name: str) -> None:
    packed = COMPRESSIONS[name](CONTENTS)

    sizes = [len(piece) for piece in decompress(memoryview(packed), offset=0, bytes_max=1 << 24)]

    assert sum(sizes) == len(CONTENTS)
    assert max(sizes) <= 1 << 20


@pytest.mark.parametrize(("window_log", "taken"), [(17, True), (27, True), (28, False), (31, False)])
def test_a_zstd_window_is_as_large_as_linux_allows(window_log: int, taken: bool) -> None:  # noqa: FBT001
    """RFC 8878 §3.1.1: magic, descriptor, window's exponent from 2**10 on; one last block, not compressed."""
    frame = bytes.fromhex("28b52ffd 00") + bytes([window_log - 10 << 3]) + bytes.fromhex("290000") + b"hello"

    if taken:
        assert unpack(frame) == b"hello"
    else:
        with pytest.raises(ImageError, match="zstd payload is broken"):
            unpack(frame)


def test_an_lzma_dictionary_takes_no_more_memory_than_there_may_be() -> None:
    packed = bytearray(COMPRESSIONS["lzma"](b"kernel"))
    struct.pack_into("<I", packed, 1, 768 << 20)

    with pytest.raises(ImageError, match="lzma payload is broken"):
        unpack(bytes(packed))
