import hashlib
import os
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eif_images import CMDLINE, KERNEL, RAMDISK, image
from nitro_eif import (
    Contents,
    Eif,
    UsageError,
    checksum,
    measure,
    measure_and_checksum,
    measure_contents,
    pack_eif,
    pcr3,
    pcr4,
    pcr_of_data,
    write_eif,
)
from nitro_eif.testing import example_contents


def test_a_header_says_what_awss_writer_says_unless_something_else_is_wanted() -> None:
    contents = example_contents()

    data = bytes(pack_eif(contents))

    count = 3 + len(contents.ramdisks)
    assert struct.unpack(">4sHHQQHH", data[:28]) == (b".eif", 4, 0, 1 << 30, 2, 0, count)
    offsets, sizes = struct.unpack(">32Q", data[28:284]), struct.unpack(">32Q", data[284:540])
    assert set(offsets[count:]) == set(sizes[count:]) == {0}
    assert 0 not in offsets[:count]
    assert data[540:544] == bytes(4)


def register(*contents: bytes) -> bytes:
    """PCR = SHA384(0^48 || SHA384(content)), spelled out."""
    return hashlib.sha384(bytes(48) + hashlib.sha384(b"".join(contents)).digest()).digest()


def test_registers_measure_data_in_file_order_and_no_headers_or_metadata() -> None:
    c = example_contents()
    first, second = (bytes(ramdisk) for ramdisk in c.ramdisks)

    found = measure(Eif.parse(pack_eif(c)))

    assert found.pcr0 == register(bytes(c.kernel), c.cmdline, first, second)
    assert found.pcr1 == register(bytes(c.kernel), c.cmdline, first)
    assert found.pcr2 == register(second)
    assert found.pcr8 is None
    assert measure_contents(c) == found


def test_with_one_ramdisk_pcr2_is_of_nothing_and_pcr1_is_pcr0() -> None:
    """The value stands in real hardware's documents."""
    found = measure(Eif.parse(pack_eif(Contents(kernel=b"k", cmdline=b"c", ramdisks=[b"r"]))))

    assert found.pcr2.hex() == (
        "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba67310f7b964fc500a"
    )
    assert found.pcr0 == found.pcr1


@given(
    st.lists(
        st.tuples(st.sampled_from([KERNEL, CMDLINE, RAMDISK, 5]), st.binary(max_size=20)),
        min_size=2,
        max_size=8,
    )
)
def test_registers_are_right_in_any_order_of_sections(sections: list[tuple[int, bytes]]) -> None:
    ramdisks = [index for index, (kind, _) in enumerate(sections) if kind == RAMDISK]
    measured = [index for index, (kind, _) in enumerate(sections) if kind != 5]

    found = measure(Eif.parse(image(sections)))

    assert found.pcr0 == register(*(sections[index][1] for index in measured))
    assert found.pcr1 == register(*(sections[index][1] for index in measured if index not in ramdisks[1:]))
    assert found.pcr2 == register(*(sections[index][1] for index in ramdisks[1:]))


@pytest.mark.parametrize("late_cmdline", [False, True])
def test_large_images_are_measured_in_threads_with_the_same_result(
    tmp_path: Path, late_cmdline: object
) -> None:
    big = os.urandom(23 << 20)
    sections = [(KERNEL, big[:5_000_001]), (RAMDISK, big[:700_000]), (RAMDISK, big), (RAMDISK, b"")]
    sections.insert(4 if late_cmdline else 1, (CMDLINE, b"c"))
    path = tmp_path / "big.eif"
    path.write_bytes(image(sections))
    seen: list[tuple[int, int]] = []
    before = set(threading.enumerate())

    with Eif.open(path) as eif:
        measured = measure_and_checksum(eif, progress=lambda done, total: seen.append((done, total)))
        measurements, checksums = measured.measurements, measured.checksums
        assert checksums.specification == eif.header.crc32
        assert checksum(eif) == checksums
        assert measure(eif) == measurements

    content = [data for kind, data in sections]
    assert measurements.pcr0 == register(*content)
    boot = [*content[:2], content[4]] if late_cmdline else content[:3]
    assert measurements.pcr1 == register(*boot)
    assert measurements.pcr2 == register(big)
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert set(threading.enumerate()) <= before


def test_an_interrupted_measurement_leaves_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "big.eif"
    write_eif(Contents(kernel=bytes(8 << 20), cmdline=b"", ramdisks=[bytes(8 << 20)] * 2), path)
    before = set(threading.enumerate())

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with Eif.open(path) as eif, pytest.raises(KeyboardInterrupt):
        measure(eif, progress=stop)
    assert set(threading.enumerate()) <= before


def test_pcr3_and_pcr4_extend_the_text_itself() -> None:
    assert pcr3("arn:aws:iam::123456789012:role/Webserver").hex().startswith("78fce75d")
    assert pcr4("i-0123456789abcdef0") == hashlib.sha384(bytes(48) + b"i-0123456789abcdef0").digest()
    for wrong in ("Webserver", "arn:aws:iam::1:role/x", "arn:aws:iam::123456789012:role/a\n"):
        with pytest.raises(UsageError, match="ARN"):
            pcr3(wrong)
    for wrong in ("", "i-12", "i-0123456789ABCDEF0", "i-0123456789abcdef0\n"):
        with pytest.raises(UsageError, match="instance id"):
            pcr4(wrong)


def test_any_data_is_measured_as_an_image_is() -> None:
    assert pcr_of_data([b"ab", memoryview(b"c")]) == register(b"abc")
