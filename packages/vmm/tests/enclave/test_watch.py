"""A kernel's panic is read off the console."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.enclave.causes import INIT_FORMAT
from nitro_vmm.enclave.watch import ConsoleWatch

# The bounds as they are promised, so that those of the program are held against them.
LINE_BYTES_MAX = 1024

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
    watch = ConsoleWatch()

    assert not watch.feed(b"[    0.9] Kernel panic - not syncing: why\r\n")
    assert watch.panic == "why"
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
    watch = ConsoleWatch()

    assert not watch.feed(text)
    assert watch.panic is None


@given(cuts=st.lists(st.integers(0, len(PANIC))))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    watch = ConsoleWatch()
    ends = [*sorted(cuts), len(PANIC)]

    over = [watch.feed(PANIC[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    assert over.count(True) == 1
    assert watch.panic == REASON


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes(first: bytes, second: bytes) -> None:
    whole, bytewise = ConsoleWatch(), ConsoleWatch()
    data = first + b"Kernel panic - not syncing: " + second

    over = whole.feed(data)
    over_by_byte = [bytewise.feed(bytes([byte])) for byte in data]

    assert over == any(over_by_byte)
    assert whole.panic == bytewise.panic


def test_a_line_without_end_takes_no_memory_and_hides_nothing() -> None:
    watch = ConsoleWatch()
    for _ in range(100):
        assert not watch.feed(b"x" * LINE_BYTES_MAX)

    assert watch.feed(b"\n" + PANIC)
    assert watch.panic == REASON


@pytest.mark.parametrize(
    ("line", "status", "signal", "said"),
    [
        ("init: the application exited with 0", 0, None, "the application exited with 0"),
        ("init: the application exited with 127", 127, None, "the application exited with 127"),
        ("init: the application was killed by signal 9", None, 9, "the application was killed by signal 9"),
        ("child exited with error", None, None, "the application failed"),
        ("child exited by signal", None, None, "the application failed"),
    ],
)
def test_the_applications_end(line: str, status: int | None, signal: int | None, said: str) -> None:
    watch = ConsoleWatch()

    watch.feed(f"booting\r\n{line}\r\n".encode())

    assert watch.application is not None
    assert (watch.application.status, watch.application.signal) == (status, signal)
    assert str(watch.application) == said


def test_an_application_that_goes_on() -> None:
    watch = ConsoleWatch()

    watch.feed(b"my init: the application exited with 0\ninit: the application exited with 4")

    assert watch.application is None


def test_the_first_cause_counts() -> None:
    watch = ConsoleWatch()

    watch.feed(b"Failed to execute /init (error -8)\n")
    watch.feed(b"Kernel panic - not syncing: No working init found.\n")

    assert watch.cause is INIT_FORMAT
