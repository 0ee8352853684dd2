"""Copies into the guest's memory."""

import pytest

from boot_images import FakeRam
from nitro_vmm.address_map import MIB
from nitro_vmm.boot.ram import copy


class Stopped(Exception):  # noqa: N818 - not an error
    """What ends a copy."""


@pytest.mark.parametrize(
    ("mib", "times"), [pytest.param(16, 1, id="a piece"), pytest.param(40, 3, id="two pieces and a half")]
)
def test_long_copies_let_others_proceed(mib: int, times: int) -> None:
    """Each piece takes some milliseconds, during which a stop has to wait."""
    ram, calls = FakeRam(64 * MIB), []

    copy(ram, 4096, memoryview(bytes(mib * MIB - 4) + b"last"), lambda: calls.append(1))

    assert len(calls) == times
    assert ram.read(4096 + mib * MIB - 4, 8) == b"last" + bytes(4)


def test_what_proceed_raises_ends_a_copy() -> None:
    ram, pieces = FakeRam(64 * MIB), []

    def proceed() -> None:
        pieces.append(1)
        if len(pieces) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        copy(ram, 0, b"\1" * (40 * MIB), proceed)

    assert ram.read(16 * MIB - 1, 2) == b"\1\0", "one piece was copied"


def test_a_copy_of_nothing_changes_nothing() -> None:
    ram = FakeRam(MIB)

    copy(ram, MIB, b"")

    assert ram.read(0, MIB) == bytes(MIB)
