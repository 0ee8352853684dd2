"""States as bytes: what was encoded comes back, and nothing else gets in."""

from typing import Any, NamedTuple

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nitro_vmm.accel import VmState
from nitro_vmm.accel.unicorn.vm import UnicornState
from nitro_vmm.errors import StateError
from nitro_vmm.machine.machine import MachineState
from nitro_vmm.snapshot.codec import decode, encode
from nitro_vmm.snapshot.layout import Description
from saved_states import changed
from states import description, machine_state

EXTENDED: dict[type, type] = {VmState: UnicornState}


class Inner(NamedTuple):
    number: int
    flag: bool


class Outer(NamedTuple):
    name: str
    content: bytes
    maybe: int | None
    inner: Inner | None
    many: tuple[Inner, ...]
    pairs: tuple[tuple[str, Inner], ...]


inners = st.builds(Inner, number=st.integers(-(2**80), 2**300), flag=st.booleans())
outers = st.builds(
    Outer,
    name=st.text(max_size=20),
    content=st.binary(max_size=40),
    maybe=st.none() | st.integers(),
    inner=st.none() | inners,
    many=st.lists(inners, max_size=3).map(tuple),
    pairs=st.lists(st.tuples(st.text(max_size=5), inners), max_size=3).map(tuple),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.text(),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=12,
)


@given(outers)
def test_a_value_comes_back_as_it_was(value: Outer) -> None:
    assert decode(encode(value), Outer) == value


def test_a_machine_comes_back_as_it_was() -> None:
    state = machine_state()

    assert decode(encode(state), MachineState, extended=EXTENDED) == state


def test_what_would_be_refused_is_not_written() -> None:
    found = description()
    wrong = found._replace(parameters=found.parameters._replace(processors=256))

    with pytest.raises(StateError, match="processors is 256"):
        encode(wrong)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_an_error(data: bytes) -> None:
    try:
        value = decode(data, Outer)
    except StateError:
        return
    assert decode(encode(value), Outer) == value


@given(outers, st.sampled_from(Outer._fields), plain)
def test_a_field_of_another_type_is_refused(value: Outer, name: str, other: object) -> None:
    document = cbor2.loads(encode(value))
    document[name] = other

    try:
        found = decode(cbor2.dumps(document), Outer)
    except StateError:
        return
    assert changed(found, **{name: getattr(value, name)}) == value


@settings(max_examples=300)
@given(st.data())
def test_a_machine_with_any_field_changed_is_a_machine_or_refused(data: st.DataObject) -> None:
    document = cbor2.loads(encode(description()))
    place = document
    kind: Any = description()
    while True:
        name = data.draw(st.sampled_from(sorted(place)))
        value = getattr(kind, name)
        if not hasattr(value, "_fields"):
            break
        place, kind = place[name], value
    place[name] = data.draw(plain)

    try:
        found = decode(cbor2.dumps(document), Description, extended=EXTENDED)
    except StateError:
        return
    assert isinstance(found.state.vm, UnicornState)


@pytest.mark.parametrize("change", ["left out", "added"])
def test_fields_have_to_be_all_there_and_no_more(change: str) -> None:
    document = {"number": 1, "flag": True}
    if change == "added":
        document["other"] = 1
    else:
        del document["flag"]

    with pytest.raises(StateError, match="fields of Inner"):
        decode(cbor2.dumps(document), Inner)


def test_true_is_no_number_and_a_number_no_flag() -> None:
    with pytest.raises(StateError, match=r"Inner\.number"):
        decode(cbor2.dumps({"number": True, "flag": True}), Inner)
    with pytest.raises(StateError, match=r"Inner\.flag"):
        decode(cbor2.dumps({"number": 1, "flag": 1}), Inner)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x9f" * 100_000, b"\x81" * 5000 + b"\0", b"\xa0\xa0"])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(StateError, match=r"damaged|fields"):
        decode(data, Inner)
