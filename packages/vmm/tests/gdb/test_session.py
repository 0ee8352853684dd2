"""What GDB gets for its packets."""

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_target import BASE, MEMORY_BYTES, FakeTarget, check_any_bytes
from nitro_vmm.gdb.packets import Decoder, Packet, encode
from nitro_vmm.gdb.registers import REGISTERS, description
from nitro_vmm.gdb.session import READ_BYTES_MAX, Action, Session

# The bounds as they are promised, so that those of the program are held against them.
PAYLOAD_BYTES_MAX = 0x4000
BREAKPOINTS_MAX = 1024

RIP = next(number for number, register in enumerate(REGISTERS) if register.name == "rip")
CS = RIP + 2


@pytest.fixture
def target() -> FakeTarget:
    return FakeTarget()


@pytest.fixture
def session(target: FakeTarget) -> Session:
    return Session(target)


def ask(session: Session, payload: bytes) -> bytes:
    """The answer to one packet."""
    answer, _ = session.receive(encode(payload))
    assert answer[:1] == b"+"
    (event,) = Decoder().feed(answer[1:])
    assert isinstance(event, Packet)
    return event.payload


def do(session: Session, payload: bytes) -> list[Action]:
    """What a packet without an answer makes happen."""
    answer, actions = session.receive(encode(payload))
    assert answer == b"+"
    return actions


def test_the_description_is_xml_with_what_gdb_wants_of_its_features() -> None:
    tree = ET.fromstring(description())  # noqa: S314 - our own

    features = {
        feature.attrib["name"]: [register.attrib["name"] for register in feature.iter("reg")]
        for feature in tree.iter("feature")
    }
    assert features["org.gnu.gdb.i386.core"][:17] == [
        *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
        *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"),
    ]
    assert len(features["org.gnu.gdb.i386.core"]) == 40
    assert len(features["org.gnu.gdb.i386.sse"]) == 17
    assert features["org.gnu.gdb.i386.segments"] == ["fs_base", "gs_base"]
    bits = {register.attrib["name"]: int(register.attrib["bitsize"]) for register in tree.iter("reg")}
    assert [bits[register.name] for register in REGISTERS] == [register.bits for register in REGISTERS]


def test_the_description_is_read_in_pieces(session: Session) -> None:
    read = b""
    answer = b"m"
    while answer[:1] == b"m":
        answer = ask(session, b"qXfer:features:read:target.xml:%x,64" % len(read))
        read += answer[1:]

    assert read == description()


def test_all_registers_at_once_and_one_by_one(session: Session) -> None:
    together = b"".join(ask(session, b"p%x" % number) for number in range(len(REGISTERS)))

    assert ask(session, b"g") == together
    assert len(together) == 2 * sum(register.size for register in REGISTERS)
    assert ask(session, b"p%x" % RIP) == b"%02x" % RIP + bytes(7).hex().encode()


def test_a_register_is_changed(session: Session, target: FakeTarget) -> None:
    assert ask(session, b"P%x=8877665544332211" % RIP) == b"OK"

    assert target.registers["rip"] == 0x1122334455667788


def test_each_register_that_may_be_is_changed_by_its_number(session: Session, target: FakeTarget) -> None:
    writable = {number: register for number, register in enumerate(REGISTERS) if register.writable}
    wanted = {number: number + 1 & (1 << register.bits) - 1 for number, register in writable.items()}

    answers = {
        number: ask(
            session, b"P%x=%s" % (number, wanted[number].to_bytes(register.size, "little").hex().encode())
        )
        for number, register in writable.items()
    }

    assert set(answers.values()) == {b"OK"}
    assert {number: target.read_register(writable[number].name) for number in writable} == wanted


@pytest.mark.parametrize(
    "payload", [b"P%x=11000000" % CS, b"P%x=1122" % RIP, b"Pff=00", b"P", b"pff", b"p-1"]
)
def test_registers_that_cannot_be(session: Session, payload: bytes) -> None:
    assert ask(session, payload) == b"E01"


def test_memory_is_read_and_written(session: Session, target: FakeTarget) -> None:
    assert ask(session, b"m%x,4" % (BASE + 2)) == b"02030405"
    assert ask(session, b"M%x,2:beef" % BASE) == b"OK"
    assert ask(session, b"X%x,3:$#}" % (BASE + 2)) == b"OK"

    assert target.memory[:6] == b"\xbe\xef$#}\x05"


@pytest.mark.parametrize(
    "payload",
    [
        *(b"m0,4", b"mxyz", b"m%x" % BASE, b"M0,1:00", b"M%x,2:00" % BASE, b"M%x,1:0g" % BASE, b"X0,1:a"),
        b"M%x,1" % BASE,
    ],
)
def test_memory_that_is_none(session: Session, payload: bytes) -> None:
    assert ask(session, payload) == b"E01"


def test_a_long_read_is_cut_to_what_fits_a_packet(session: Session, target: FakeTarget) -> None:
    target.memory = bytearray(MEMORY_BYTES)

    assert (
        len(ask(session, b"m%x,ffffff" % BASE)) == 2 * min(READ_BYTES_MAX, MEMORY_BYTES) < PAYLOAD_BYTES_MAX
    )


def test_breakpoints_of_both_kinds(session: Session, target: FakeTarget) -> None:
    assert ask(session, b"Z0,1000,1") == b"OK"
    assert ask(session, b"Z1,2000,1") == b"OK"
    assert ask(session, b"z0,1000,1") == b"OK"
    assert ask(session, b"Z2,3000,4") == b"", "watchpoints are not known"

    assert target.breakpoints == {0x2000}


def test_breakpoints_are_bounded(session: Session, target: FakeTarget) -> None:
    for number in range(BREAKPOINTS_MAX):
        ask(session, b"Z0,%x,1" % number)

    assert ask(session, b"Z0,ffff,1") == b"E01"
    assert len(target.breakpoints) == BREAKPOINTS_MAX


@pytest.mark.parametrize(
    ("payload", "action"),
    [
        *((b"c", Action.CONTINUE), (b"s", Action.STEP), (b"vCont;c", Action.CONTINUE), (b"k", Action.KILL)),
        *((b"vCont;s:1;c", Action.STEP), (b"C05", Action.CONTINUE)),
    ],
)
def test_the_guest_is_let_go(session: Session, payload: bytes, action: Action) -> None:
    assert do(session, payload) == [action]
    assert session.running is (action in (Action.CONTINUE, Action.STEP))


def test_a_breakpoint_that_the_processor_does_not_have_is_an_error(
    session: Session, target: FakeTarget
) -> None:
    target.breakpoints_max = 1

    answers = [ask(session, packet) for packet in (b"Z1,1000,1", b"Z1,2000,1", b"z1,1000,1", b"Z1,2000,1")]

    assert answers == [b"OK", b"E01", b"OK", b"OK"]
    assert target.breakpoints == {0x2000}


def test_a_breakpoint_is_reported(session: Session, target: FakeTarget) -> None:
    ask(session, b"Z1,2000,1")
    do(session, b"c")
    target.registers["rip"] = 0x2000

    assert session.stopped(interrupted=False) == encode(b"T05hwbreak:;thread:1;")
    assert ask(session, b"?") == b"T05hwbreak:;thread:1;"


def test_ctrl_c_while_the_guest_runs_and_while_it_does_not(session: Session) -> None:
    assert session.receive(b"\x03") == (b"", [])
    do(session, b"c")

    assert session.receive(b"\x03") == (b"", [Action.STOP])
    assert session.stopped(interrupted=True) == encode(b"T02thread:1;")


def test_packets_wait_while_the_guest_runs(session: Session) -> None:
    do(session, b"c")

    assert session.receive(encode(b"g")) == (b"+", [])


def test_the_end_is_told_to_who_waits_for_news(session: Session) -> None:
    assert session.ended() == b""
    do(session, b"c")

    assert session.ended() == encode(b"W00")


def test_detaching_takes_the_breakpoints_away(session: Session, target: FakeTarget) -> None:
    ask(session, b"Z0,1000,1")

    _, actions = session.receive(encode(b"D"))

    assert actions == [Action.DETACH]
    assert target.breakpoints == frozenset()


def test_acknowledgements_end_when_both_agree(session: Session) -> None:
    assert session.receive(b"$OK#00")[0] == b"-"
    assert session.receive(b"-")[0] == b""
    answer = ask(session, b"QStartNoAckMode")

    assert answer == b"OK"
    assert session.receive(encode(b"qC"))[0] == encode(b"QC1")
    assert session.receive(b"$OK#00")[0] == b""


def test_the_last_packet_is_sent_again(session: Session) -> None:
    first = session.receive(encode(b"qC"))[0]

    assert session.receive(b"-")[0] == first[1:]


@pytest.mark.parametrize(
    "payload", [b"vMustReplyEmpty", b"qTStatus", b"R00", b"_", b"vFile:open:00", b"jThreads"]
)
def test_what_is_not_known_gets_an_empty_answer(session: Session, payload: bytes) -> None:
    assert ask(session, payload) == b""


def test_what_is_supported(session: Session) -> None:
    supported = ask(session, b"qSupported:multiprocess+;swbreak+;hwbreak+").split(b";")

    assert b"PacketSize=4000" in supported
    assert {b"qXfer:features:read+", b"QStartNoAckMode+", b"vContSupported+", b"hwbreak+"} <= set(supported)
    assert re.fullmatch(rb"vCont(;[cCsS])+", ask(session, b"vCont?"))


COMMANDS = st.sampled_from(
    [b"g", b"?", b"c", b"s", b"k", b"D", b"vCont;c", b"QStartNoAckMode", b"Z0,1000,1", b"z0,1000,1", b"p10"]
)


@given(
    st.lists(st.one_of(st.binary(max_size=30), COMMANDS.map(encode), st.binary(max_size=20).map(encode))),
    st.lists(st.integers(0, 40)),
)
def test_any_bytes_get_packets_and_no_error(pieces: list[bytes], sizes: list[int]) -> None:
    check_any_bytes(b"".join(pieces), sizes)
