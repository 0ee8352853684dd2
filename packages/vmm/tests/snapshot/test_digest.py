"""The digest over a saved machine's file: of all its bytes in their order, and given up where wanted."""

import hashlib

import pytest

from nitro_vmm.snapshot.digest import PART_BYTES, digest_of


@pytest.mark.parametrize("count", [0, 1, PART_BYTES, PART_BYTES + 1, 5 * PART_BYTES - 7])
def test_it_is_that_of_the_parts_digests(count: int) -> None:
    content = bytes(index % 251 for index in range(1000)) * (count // 1000 + 1)
    content = content[:count]

    parts = [content[start : start + PART_BYTES] for start in range(0, count, PART_BYTES)]
    expected = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()

    assert digest_of(memoryview(content)) == expected


def test_whoever_gives_up_may_close_the_view_at_once() -> None:
    def give_up() -> None:
        raise InterruptedError

    content = bytearray(8 * PART_BYTES)

    with pytest.raises(InterruptedError), memoryview(content) as view:
        digest_of(view, give_up)

    content.append(0)  # which is an error while anybody has a view
