"""A kernel's panic is read off the console."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.enclave.panic import LINE_BYTES_MAX, PanicWatch

PANIC = (
    b"[    0.600041] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r\n"
    b"[    0.600628] CPU: 0 UID: 0 PID: 1 Comm: init Not tainted\r\n"
    b"[    0.607753] Rebooting in 1 seconds..\r\n"
)
REASON = "Attempted to kill init! exitcode=0x0000000b"


@pytest.mark.parametrize(
    "last",
    [
        b"[    1.0] Rebooting in 1 seconds..\r\n",
        b"[    1.0] ---[ end Kernel panic - not syncing: why ]---\r\n",
    ],
)
def test_a_panic_is_over(last: bytes) -> None:
    watch = PanicWatch()

    assert not watch.feed(b"[    0.9] Kernel panic - not syncing: why\r\n")
    assert watch.reason == "why"
    assert not watch.feed(b"[    0.9] Call Trace:\r\n")
    assert watch.feed(last)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"Rebooting in 1 seconds..\n",
        b"my log: Kernel panic - not syncing: no\nRebooting in 1 seconds..\n",
        b"Kernel panic - not syncing: no end of the line",
    ],
)
def test_no_panic(text: bytes) -> None:
    watch = PanicWatch()

    assert not watch.feed(text)
    assert watch.reason is None


@given(cuts=st.lists(st.integers(0, len(PANIC))))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    watch = PanicWatch()
    ends = [*sorted(cuts), len(PANIC)]

    over = [watch.feed(PANIC[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    assert over.count(True) == 1
    assert watch.reason == REASON


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes(first: bytes, second: bytes) -> None:
    whole, bytewise = PanicWatch(), PanicWatch()
    data = first + b"Kernel panic - not syncing: " + second

    over = whole.feed(data)
    over_by_byte = [bytewise.feed(bytes([byte])) for byte in data]

    assert over == any(over_by_byte)
    assert whole.reason == bytewise.reason


def test_a_line_without_end_takes_no_memory_and_hides_nothing() -> None:
    watch = PanicWatch()
    for _ in range(100):
        assert not watch.feed(b"x" * LINE_BYTES_MAX)

    assert watch.feed(b"\n" + PANIC)
    assert watch.reason == REASON
