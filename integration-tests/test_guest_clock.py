"""The enclave's clock is this computer's, with a kernel like AWS's and with Debian's."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import guest_clock
import images
from guest_clock import NS_PER_MS, GuestClock, Reading
from nitro_vmm.accel.unicorn import NATIVE_PART_MISSING

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(NATIVE_PART_MISSING), reason=f"no native part: {NATIVE_PART_MISSING}"),
]

WRONG_NS_MAX = 10 * NS_PER_MS
BOOTS = 3
"""A host that holds the guest up at the one moment when its kernel takes its clock can make it wrong."""
DOCUMENTS = 20


@pytest.fixture(scope="module", params=images.KERNELS)
def image(request: pytest.FixtureRequest) -> Path:
    try:
        return guest_clock.build(request.param)
    except images.ERRORS as error:
        pytest.skip(str(error))


@pytest.fixture
def clocks(image: Path) -> Iterator[Iterator[GuestClock]]:
    """The clocks of several enclaves, one after the other."""
    with ExitStack() as stack:
        yield (stack.enter_context(guest_clock.running(image)) for _ in range(BOOTS))


def test_it_is_kvm_clock_and_right_at_once(clocks: Iterator[GuestClock]) -> None:
    wrong_ns = []
    for clock in clocks:
        reading = clock.read()
        assert clock.source() == "kvm-clock"
        wrong_ns.append(abs(reading.wrong_ns))
        if wrong_ns[-1] <= WRONG_NS_MAX:
            return

    pytest.fail(f"the clocks of {BOOTS} enclaves are wrong by {wrong_ns} ns or more")


def test_an_own_document_is_never_of_the_future(clocks: Iterator[GuestClock]) -> None:
    ages_ns = []
    for clock in clocks:
        documents = [clock.attested() for _ in range(DOCUMENTS)]
        assert all(document_ns for document_ns, _ in documents)
        ages_ns.append(min(guest_ns - document_ns for document_ns, guest_ns in documents))
        if ages_ns[-1] >= 0:
            return

    pytest.fail(f"the youngest documents of {BOOTS} enclaves are {ages_ns} ns old")


@pytest.mark.parametrize(
    ("guest_ns", "wrong_ns"),
    [
        pytest.param(89, -11, id="behind"),
        pytest.param(100, 0, id="at the question"),
        pytest.param(150, 0, id="in between"),
        pytest.param(200, 0, id="at the answer"),
        pytest.param(207, 7, id="ahead"),
    ],
)
def test_a_clock_is_wrong_by_what_lies_outside(guest_ns: int, wrong_ns: int) -> None:
    assert Reading(100, guest_ns, 200).wrong_ns == wrong_ns
