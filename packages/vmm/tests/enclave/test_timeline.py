"""What a timeline notes, and the page that it makes."""

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm import Enclave, EnclaveConfig
from nitro_vmm.accel import Exit, ExitReason
from nitro_vmm.enclave.timeline import DETAIL_CHARACTERS_MAX, HEARTBEAT, MILESTONES, Moment, Timeline
from nitro_vmm.enclave.timeline_page import POLICY, page
from nitro_vmm.testing import FakeAccelerator, FakeVcpu

LINES = [
    b"[    0.000000] Linux version 6.12.117-nitro (builder@host) (gcc) #1 SMP",
    b"[    0.392667] Memory: 496516K/523896K available (10240K kernel code)",
    b"[    0.421240] clocksource: Switched to clocksource kvm-clock",
    b"[    1.450844] Trying to unpack rootfs image as initramfs...",
    b"[    1.550906] Freeing initrd memory: 1992K",
    b"[    0.272949] printk: legacy console [ttyS0] enabled",
    b"[    1.982286] NET: Registered PF_VSOCK protocol family",
    b"[    2.214303] Run /init as init process",
]


@pytest.fixture
def timeline() -> Timeline:
    """One whose clock goes on by a second whenever it is looked at."""
    clock = count(1)
    return Timeline(lambda: float(next(clock)))


def test_only_the_first_time_counts_and_the_order_is_that_of_time(timeline: Timeline) -> None:
    timeline.note("b", "x")
    timeline.note("a")
    timeline.note("b", "y")

    assert timeline.moments == [Moment("launch", 0.0), Moment("b", 1.0, "x"), Moment("a", 2.0)]


def test_every_milestone_of_the_kernel_is_found_with_its_clock(timeline: Timeline) -> None:
    for line in LINES * 2:
        timeline.note_line(line)

    found = {moment.name: moment for moment in timeline.moments}
    assert set(found) == {"launch", *(name for name, _ in MILESTONES)}
    assert found["kernel: starts init"].detail == "/init"
    assert found["kernel: has unpacked the ramdisks"].kernel_s == 1.550906


def test_nothing_is_taken_for_a_milestone_after_the_boot(timeline: Timeline) -> None:
    timeline.note(HEARTBEAT)

    timeline.note_line(LINES[-1])

    assert [moment.name for moment in timeline.moments] == ["launch", HEARTBEAT]


def test_details_of_the_guests_are_short_and_printable(timeline: Timeline) -> None:
    timeline.note_line(b"[    2.0] Run /\x1b[31m" + b"x" * 1000 + b" as init process")

    (_, moment) = timeline.moments
    assert len(moment.detail) == DETAIL_CHARACTERS_MAX
    assert moment.detail.isprintable()


def test_as_text(timeline: Timeline) -> None:
    timeline.note("heartbeat", "well")

    assert str(timeline) == "    0.000 s  +0.000  launch\n    1.000 s  +1.000  heartbeat (well)"


async def test_what_an_enclave_does_is_noted(image: Path) -> None:
    def boot(vcpu: FakeVcpu) -> Exit:
        vcpu.print(LINES[0] + b"\r\ninit: the application exited with 3\r\n")
        return Exit(ExitReason.HALTED)

    async with Enclave(EnclaveConfig(eif_path=image), accelerator=FakeAccelerator(boot)) as enclave:
        await enclave.wait()

    assert [moment.name for moment in enclave.timeline.moments] == [
        *("launch", "accelerator chosen", "image measured", "kernel loaded", "guest starts", "first output"),
        *("kernel: first line", "application ended", "end"),
    ]
    assert enclave.timeline.moments[-1].detail == "the enclave halted for good"


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.data = ""
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "line"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.data += data
        self.texts.append(data)


def moments() -> Iterator[Moment]:
    names = ["launch", "guest starts", "kernel: starts init", "heartbeat", "end"]
    for number, name in enumerate(names):
        yield Moment(name, number / 2, f"detail {number}", kernel_s=None if number % 2 else 0.5)


def test_a_page_is_one_well_formed_file_with_nothing_from_elsewhere() -> None:
    found = Page(page(list(moments()), {"image": "hello.eif"}, {"moments": []}))

    assert found.open == []
    attributes = [(name, value) for _, attributes in found.tags for name, value in attributes.items()]
    assert {name for name, _ in attributes} & {"src", "href", "srcset", "action", "xlink:href"} == set()
    assert not any(name.startswith("on") for name, _ in attributes)
    assert ("content", POLICY) in attributes
    assert [attributes["type"] for tag, attributes in found.tags if tag == "script"] == ["application/json"]
    bars = [attributes for tag, attributes in found.tags if tag == "rect"]
    assert len(bars) == 4, "vmm, kernel, init, application"
    assert len([tag for tag, _ in found.tags if tag == "circle"]) == 5
    assert "kernel: 0.500 s" in found.texts


def test_without_the_kernels_words_kernel_and_init_are_one_phase() -> None:
    quiet = [moment for moment in moments() if moment.name != "kernel: starts init"]

    found = Page(page(quiet, {}, {}))

    assert "kernel and init: 1.000 s" in found.texts


@given(st.lists(st.tuples(st.text(), st.floats(0, 1e9), st.text()), max_size=5), st.text())
def test_whatever_the_guest_says_the_page_says_that_and_stays_a_page(
    said: list[tuple[str, float, str]], fact: str
) -> None:
    noted = [Moment("launch", 0.0), *(Moment(name, at_s, text) for name, at_s, text in sorted(said))]
    data = {"moments": [name for name, _, _ in said], "fact": fact}

    found = Page(page(noted, {"image": fact}, data))

    assert found.open == []
    assert json.loads(found.data) == data
    assert {tag for tag, _ in found.tags} <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "h1",
            "h2",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
        ),
        *("td", "svg", "rect", "text", "circle", "line", "script"),
    }
