"""The digest over a saved machine's file: of all its bytes in their order, and given up where wanted."""

import hashlib
import threading
import time
from pathlib import Path

import pytest

from nitro_vmm.snapshot.digest import Digesting, FileDigest, digest_of

PATIENCE_S = 30
PART_BYTES = 4 << 20
DIGESTED_FROM = 8 + 4 + 32
"""Magic, format and the digest itself."""


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


def test_who_helps_before_the_digest_is_wanted_leaves_less_to_do() -> None:
    content = bytes(range(256)) * (3 * PART_BYTES // 256)
    began: list[None] = []

    def stop_after_two() -> None:
        if len(began) == 2:
            raise InterruptedError
        began.append(None)

    digesting = Digesting(memoryview(content))
    with pytest.raises(InterruptedError):
        digesting.help(stop_after_two)
    computed = digesting.result()
    digesting.close()

    assert computed == digest_of(memoryview(content))


def test_what_a_thread_lacks_memory_for_is_computed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * (3 * PART_BYTES // 256)
    digesting = Digesting(memoryview(content))

    def lack(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as scarce:
        scarce.setattr(hashlib, "new", lack)
        with pytest.raises(MemoryError):
            digesting.help()
    computed = digesting.result()
    digesting.close()

    assert computed == digest_of(memoryview(content))


def test_what_fails_while_the_digest_is_closed_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    digesting = Digesting(memoryview(bytes(3 * PART_BYTES)))
    closing = threading.Thread(target=digesting.close)

    def lack_while_it_is_closed(*_: object) -> None:
        closing.start()
        until_s = time.monotonic() + PATIENCE_S
        while digesting._waiting and time.monotonic() < until_s:
            pass
        raise MemoryError

    monkeypatch.setattr(hashlib, "new", lack_while_it_is_closed)
    with pytest.raises(MemoryError):
        digesting.help()
    closing.join()

    digesting.help()  # computes nothing, which would fail again


def test_the_digest_of_a_file_leaves_out_what_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    path.write_bytes(bytes(DIGESTED_FROM) + b"content")

    with path.open("rb") as file:
        digest = FileDigest(file, DIGESTED_FROM + 7)
        computed = digest.result()
        digest.close()
        digest.close()

    assert computed == digest_of(memoryview(b"content"))
