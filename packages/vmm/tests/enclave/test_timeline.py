"""What a timeline notes, and the page that it makes."""

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import count, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm import Enclave, EnclaveConfig
from nitro_vmm.accel import Exit, ExitReason
from nitro_vmm.enclave.timeline import HEARTBEAT, MILESTONES, Moment, Timeline
from nitro_vmm.enclave.timeline_page import POLICY, page
from nitro_vmm.testing import FakeAccelerator, FakeVcpu

# The bounds as they are promised, so that those of the program are held against them.
DETAIL_CHARACTERS_MAX = 200

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
    assert set(found) == {"launch", *(name for name, _, _ in MILESTONES)}
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


def number(attributes: dict[str, str | None], name: str) -> float:
    return float(attributes[name] or "")


def bars(found: Page) -> list[tuple[float, float]]:
    """Where the phases begin and end in the picture, from left to right."""
    rectangles = [attributes for tag, attributes in found.tags if tag == "rect"]
    return [(number(one, "x"), number(one, "x") + number(one, "width")) for one in rectangles]


def test_bars_and_marks_are_where_their_times_are() -> None:
    found = Page(page(list(moments()), {}, {}))

    axis = next(attributes for tag, attributes in found.tags if tag == "line")
    marks = [attributes for tag, attributes in found.tags if tag == "circle"]
    # The boot takes 1.5 of 1.875 s that are shown of 1000 units with margins of 10; the end is beyond.
    places = [10.0, 271.3, 532.7, 794.0, 990.0]
    assert [number(mark, "cx") for mark in marks] == places
    assert bars(found) == [pytest.approx(pair, abs=0.11) for pair in pairwise(places)]
    assert (number(axis, "x1"), number(axis, "x2"), number(axis, "y1")) == (10, 990, number(axis, "y2"))
    assert {number(mark, "cy") for mark in marks} == {number(axis, "y1")}
    assert [number(mark, "r") for mark in marks] == [3, 3, 3, 5, 5]


def test_the_axis_is_marked_at_every_fifth_of_the_time() -> None:
    found = Page(page([Moment("launch", 0.0), Moment("end", 10.0)], {}, {}))

    ticks = [attributes for tag, attributes in found.tags if tag == "text"]
    assert [text for text in found.texts if text.endswith(".00 s")] == [
        f"{second}.00 s" for second in (0, 2, 4, 6, 8, 10)
    ]
    assert [number(tick, "x") for tick in ticks] == [10, 206, 402, 598, 794, 990]
    assert [tick["text-anchor"] for tick in ticks] == ["start", *["middle"] * 4, "end"]


def test_phases_are_below_each_other_and_above_the_axis() -> None:
    found = Page(page(list(moments()), {}, {}))

    rectangles = [attributes for tag, attributes in found.tags if tag == "rect"]
    tops = [number(one, "y") for one in rectangles]
    bottoms = [number(one, "y") + number(one, "height") for one in rectangles]
    labels = [number(attributes, "y") for tag, attributes in found.tags if tag == "text"]
    axis = number(next(attributes for tag, attributes in found.tags if tag == "line"), "y1")
    assert tops[0] == 0
    assert all(bottom < top for bottom, top in zip(bottoms, [*tops[1:], axis], strict=True))
    assert all(top < label < bottom for top, label, bottom in zip(tops, labels, bottoms, strict=False))
    assert len(set(labels[len(tops) :])) == 1
    assert labels[-1] > axis
    view = next(attributes for tag, attributes in found.tags if tag == "svg")["viewbox"] or ""
    assert view.split()[:3] == ["0", "0", "1000"]
    assert float(view.split()[3]) > labels[-1]


@pytest.mark.parametrize(("begin_s", "anchor"), [(1.0, None), (9.0, "end")])
def test_the_label_of_a_late_phase_stays_in_the_picture(begin_s: float, anchor: str | None) -> None:
    found = Page(page([Moment("launch", begin_s), Moment("guest starts", 10.0)], {}, {}))

    label = next(attributes for tag, attributes in found.tags if tag == "text")
    ((left, _),) = bars(found)
    assert label.get("text-anchor") == anchor
    assert 0 < (left - number(label, "x") if anchor else number(label, "x") - left) < 10


def test_a_phase_of_no_time_is_seen() -> None:
    found = Page(page([Moment("launch", 0.0), Moment("guest starts", 0.0), Moment("end", 1.0)], {}, {}))

    ((left, right),) = bars(found)
    assert right - left == 1


def test_a_phase_that_ends_before_it_begins_is_left_out() -> None:
    found = Page(page([Moment("guest starts", 0.0), Moment("launch", 0.5), Moment("end", 1.0)], {}, {}))

    assert bars(found) == []


def test_each_moment_has_its_time_and_that_since_the_one_before() -> None:
    found = Page(page([Moment("a", 0.25), Moment("b", 1.0, "well", kernel_s=0.5)], {"image": "x"}, {}))

    rows = [text for text in found.texts if text.strip()]
    rows = rows[rows.index("more") + 1 : -1]
    assert rows == ["0.250", "0.000", "a", "1.000", "0.750", "0.500000", "b", "well"]
    assert "Boot of x" in found.texts


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
