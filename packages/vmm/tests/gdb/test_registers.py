"""What GDB is told of registers: as large as the processor's, and named as Linux names their bits."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fake_target import FakeTarget
from nitro_vmm.gdb import session
from nitro_vmm.gdb.packets import Decoder, Packet, encode
from nitro_vmm.gdb.registers import REGISTERS, description
from nitro_vmm.gdb.session import Session

FLAGS = Path("/usr/include/x86_64-linux-gnu/asm/processor-flags.h")
TREE = ET.fromstring(description())  # noqa: S314 - our own
BITS = {each.attrib["name"]: int(each.attrib["bitsize"]) for each in TREE.iter("reg")}


def answer(asked: Session, payload: bytes) -> bytes:
    events = Decoder().feed(asked.receive(encode(payload))[0])
    assert isinstance(events[-1], Packet)
    return events[-1].payload


@pytest.mark.parametrize(
    ("names", "bits"),
    [
        pytest.param(r"r..?|[fg]s_base|kernel_gs_base|cr\d|efer", 64, id="64-bit"),
        pytest.param(r"eflags|[cdefgs]s", 32, id="flags and selectors"),
        pytest.param(r"st\d", 80, id="x87"),
        pytest.param(r"f(ctrl|stat|tag|iseg|ioff|oseg|ooff|op)|mxcsr", 32, id="x87's control and MXCSR"),
        pytest.param(r"xmm\d+", 128, id="SSE"),
    ],
)
def test_registers_have_the_processors_sizes(names: str, bits: int) -> None:
    """GDB's own gdb/features/i386/64bit-core.xml and 64bit-sse.xml."""
    found = {name: size for name, size in BITS.items() if re.fullmatch(names, name)}

    assert found
    assert set(found.values()) == {bits}


def test_there_are_sixteen_general_and_vector_registers_and_eight_of_x87() -> None:
    names = [register.name for register in REGISTERS]

    assert [f"r{number}" for number in range(8, 16)] == [
        name for name in names if re.fullmatch(r"r\d+", name)
    ]
    assert [f"xmm{number}" for number in range(16)] == [name for name in names if name.startswith("xmm")]
    assert [f"st{number}" for number in range(8)] == [name for name in names if re.fullmatch(r"st\d+", name)]
    assert len(set(names)) == len(names)


def test_vectors_are_sixteen_bytes_whatever_is_in_them() -> None:
    sizes = {"ieee_single": 4, "ieee_double": 8, "int8": 1, "int32": 4, "int64": 8}

    vectors = [(each.attrib["type"], int(each.attrib["count"])) for each in TREE.iter("vector")]

    assert {sizes[kind] * count for kind, count in vectors} == {16}


@pytest.mark.skipif(not FLAGS.exists(), reason="there are no headers of the kernel")
def test_flags_are_where_the_processor_has_them() -> None:
    bits = dict(re.findall(r"#define X86_EFLAGS_(\w+)_BIT\s+(\d+)", FLAGS.read_text()))

    fields = [each.attrib for flags in TREE.iter("flags") for each in flags.iter("field")]

    assert {field["name"] for field in fields} == set(bits) - {"FIXED", "IOPL"}
    for field in fields:
        assert field["start"] == field["end"] == bits[field["name"]]


def test_a_value_is_cut_to_its_register() -> None:
    target = FakeTarget()
    target.registers = dict.fromkeys(target.registers, (1 << 200) - 1)

    assert answer(Session(target), b"g") == b"ff" * (sum(BITS.values()) // 8)


def test_a_read_is_as_long_as_fits_a_packet() -> None:
    endless = Session(Endless())
    (packet_bytes,) = re.findall(rb"PacketSize=([0-9a-f]+)", answer(endless, b"qSupported"))

    longest = len(answer(endless, b"m0,ffffff"))

    assert int(packet_bytes, 16) * 9 // 10 < longest <= int(packet_bytes, 16) - len("$#00")
    assert len(answer(endless, b"m0,%x" % (longest // 2))) == longest
    assert len(answer(endless, b"m0,%x" % (longest // 2 - 1))) == longest - 2


def test_a_long_description_is_read_in_pieces_that_fit_a_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "description", lambda: b"}" * 100_000)  # each takes two bytes in a packet

    piece = answer(Session(FakeTarget()), b"qXfer:features:read:target.xml:0,ffffff")

    assert piece[:1] == b"m"
    assert 1000 < len(encode(piece)) <= 0x4000 + len("m$#00")


def test_who_is_stopped_by_ctrl_c_at_a_breakpoint_has_not_come_to_it() -> None:
    target = FakeTarget()
    debugged = Session(target)
    answer(debugged, b"Z1,1000,1")
    target.registers["rip"] = 0x1000

    assert b"$T05hwbreak:;thread:1;#" in debugged.stopped(interrupted=False)
    assert b"$T02thread:1;#" in debugged.stopped(interrupted=True)


class Endless(FakeTarget):
    """One with memory everywhere."""

    def read_memory(self, address: int, length: int) -> bytes:  # noqa: ARG002 - the protocol's
        return bytes(length)
