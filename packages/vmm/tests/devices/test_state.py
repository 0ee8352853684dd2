"""Saved devices: each goes on as the one it was saved from, and no damaged state gets in."""

import json
import struct
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nitro_nsm import Nsm, NsmConfig
from nitro_vmm.devices.acpi_power import AcpiPower
from nitro_vmm.devices.i8042 import I8042
from nitro_vmm.devices.io_apic import IoApic
from nitro_vmm.devices.local_apic import LocalApic
from nitro_vmm.devices.local_apic_registers import LVT_TIMER, Register
from nitro_vmm.devices.nsm import NsmDevice
from nitro_vmm.devices.rtc import Rtc
from nitro_vmm.devices.serial import Serial
from nitro_vmm.devices.state import require_bytes
from nitro_vmm.devices.virtio_mmio import VirtioMmio
from nitro_vmm.devices.virtio_mmio_registers import LADDER
from nitro_vmm.devices.virtio_mmio_registers import Register as Virtio
from nitro_vmm.devices.vsock import VsockDevice
from nitro_vmm.errors import StateError
from nitro_vsock import F_VERSION_1, GuestMemory, VsockConfig, VsockEngine
from saved_states import changed

# The bounds as they are promised, so that those of the program are held against them.
INPUT_BYTES_MAX = 1024
AHEAD_S_MAX = 253_402_300_799

HZ = 1_000_000_000
SIZES = (1, 2, 4, 8)
RAM_BYTES = 1 << 18
RING_BYTES = 1 << 12
BUFFERS = 1 << 16
REQUESTS = (
    b"\x6bDescribeNSM",
    struct.pack("<QQIIIHHIII", 16, 3, 1024, 5000, 0, 1, 1, 0, 1 << 18, 0),
)
"""One that the NSM understands, and a vsock packet that asks for a connection."""


class Saved(Protocol):
    """A device that can be saved; states of different devices have nothing in common."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...

    def state(self) -> Any: ...  # noqa: ANN401

    def restore(self, state: Any) -> None: ...  # noqa: ANN401


class World(ExitStack):
    """A clock that moves when told, RAM, and a record of all that a device does to its surroundings."""

    def __init__(self, now_ns: int, ram: bytes = bytes(RAM_BYTES)) -> None:
        super().__init__()
        self.now_ns = now_ns
        self.ram = bytearray(ram)
        self.memory = GuestMemory([(0, memoryview(self.ram))])
        self.seen: list[object] = []
        self.nsm: Nsm | None = None
        self.engine: VsockEngine | None = None

    def clock_ns(self) -> int:
        return self.now_ns

    def accept(self, vector: int, level: bool) -> bool:  # noqa: FBT001
        self.seen.append(("accept", vector, level))
        return vector % 3 != 0  # some are refused, as by an APIC that is off

    def event(self) -> None:
        self.seen.append("event")


def serial(world: World) -> Serial:
    return Serial(world.seen.append, world.seen.append, world.event)


def local_apic(world: World) -> LocalApic:
    apic = LocalApic(world.clock_ns, HZ, lambda: None)
    apic.end_of_level_interrupt = world.seen.append
    apic.write(Register.SPURIOUS_VECTOR, 4, 0x1FF)
    return apic


def nsm(world: World) -> VirtioMmio:
    config = NsmConfig(instance_id="i-1234567890abcdef0", enclave_id="0123456789abcdef")
    world.nsm = Nsm(config, entropy=bytes, clock=world.clock_ns)
    return VirtioMmio(NsmDevice(world.nsm, world.memory), world.seen.append, name="nsm")


def vsock(world: World) -> VirtioMmio:
    world.engine = VsockEngine(VsockConfig(guest_cid=16), clock=lambda: world.now_ns / HZ)
    device = VsockDevice(world.engine, world.memory, locked=lambda action: action())
    world.callback(device.close)
    return VirtioMmio(device, world.seen.append, name="vsock")


def set_up(device: VirtioMmio) -> None:
    """What a driver does, with queues from the start of RAM on."""
    device.write(Virtio.STATUS, 4, 0)
    status = 0
    for rung in LADDER[:3]:
        device.write(Virtio.DRIVER_FEATURES_SEL, 4, 1)
        device.write(Virtio.DRIVER_FEATURES, 4, F_VERSION_1 >> 32)
        status |= rung
        device.write(Virtio.STATUS, 4, status)
    for queue in range(3):
        base = queue * RING_BYTES
        device.write(Virtio.QUEUE_SEL, 4, queue)
        device.write(Virtio.QUEUE_SIZE, 4, 2)
        device.write(Virtio.QUEUE_DESC_LOW, 4, base)
        device.write(Virtio.QUEUE_DRIVER_LOW, 4, base + 32)
        device.write(Virtio.QUEUE_DEVICE_LOW, 4, base + 64)
        device.write(Virtio.QUEUE_READY, 4, 1)
    device.write(Virtio.STATUS, 4, status | LADDER[3])


def offer(world: World, queue: int, content: bytes, room: int) -> None:
    """Make a chain to read, if there is content, and one to write, if there is room, available."""
    base = queue * RING_BYTES
    flags, available = struct.unpack_from("<HH", world.ram, base + 32)
    for index, length, writable in ((0, len(content), 0), (1, room, 2)):
        if length:
            place = BUFFERS + queue * 0x8000 + index * 0x4000
            struct.pack_into("<QIHH", world.ram, base + 16 * index, place, length, writable, 0)
            world.ram[place : place + len(content)] = content
            struct.pack_into("<H", world.ram, base + 36 + 2 * (available % 2), index)
            available = (available + 1) & 0xFFFF
    struct.pack_into("<HH", world.ram, base + 32, flags, available)


def act(device: VirtioMmio, world: World, choice: int) -> None:
    """One of the things that a driver or its host does."""
    queue = choice // 8 % 3
    match choice % 8:
        case 0:
            set_up(device)
        case 1 | 2:
            offer(world, queue, REQUESTS[choice // 24 % 2], 0x3000)
        case 3:
            offer(world, queue, REQUESTS[choice // 24 % 2], 0)
        case 4:
            offer(world, queue, b"", 0x3000)
        case 5 | 6:
            device.write(Virtio.QUEUE_NOTIFY, 4, queue)
        case 7 if world.engine is not None:
            world.seen.append(world.engine.turn())


DEVICES: dict[str, Callable[[World], Saved]] = {
    "serial": serial,
    "rtc": lambda world: Rtc(world.clock_ns),
    "i8042": lambda world: I8042(world.event, world.seen.append),
    "acpi_power": lambda world: AcpiPower(world.event, world.event),
    "io_apic": lambda world: IoApic(world.accept),
    "local_apic": local_apic,
    "nsm": nsm,
    "vsock": vsock,
}
CHIPS = [name for name in DEVICES if name not in ("nsm", "vsock")]

# What the guest, the host or time does: kind, size, offset, value.
steps = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "other", "other", "time"]),
        st.sampled_from(SIZES),
        st.integers(0, 8) | st.integers(0, 0x41).map(lambda slot: slot << 4) | st.integers(0, 0x80),
        st.integers(0, 255) | st.integers(0, 2**32 - 1),
    ),
    max_size=40,
)
Step = tuple[str, int, int, int]


def save(device: Saved, world: World) -> Any:  # noqa: ANN401
    """Pause what can be paused, and take the state."""
    if isinstance(device, VirtioMmio):
        device.pause()
    if world.nsm is not None:
        world.seen.append(world.nsm.state())
    return device.state()


def go_on(device: Saved) -> None:
    """Undo the pause."""
    if isinstance(device, VirtioMmio):
        device.resume()


def drive(device: Saved, world: World, sequence: list[Step]) -> list[object]:
    """Do the steps; everything that can be seen from outside."""
    start = len(world.seen)
    for kind, size, offset, value in sequence:
        match kind, device:
            case "read", _:
                world.seen.append(device.read(offset, size))
            case "write", _:
                device.write(offset, size, value)
            case "time", LocalApic():
                world.now_ns += value
                device.tick(world.now_ns)
                world.seen.append((device.pending_vector(), device.deadline_ns))
            case "time", _:
                world.now_ns += value
            case "other", VirtioMmio():
                act(device, world, value)
            case "other", Serial():
                world.seen.append(device.receive(bytes(value % 64)))
            case "other", IoApic():
                device.set_line(offset % 24, bool(value & 1))
            case "other", LocalApic():
                device.accept(value & 0xFF, level=bool(offset & 1))
                if (vector := device.pending_vector()) is not None:
                    device.acknowledge(vector)
    return world.seen[start:]


@pytest.mark.parametrize("name", DEVICES)
@given(before=steps, after=steps, start_ns=st.integers(0, 2**61))
def test_a_restored_device_goes_on_as_the_saved_one(
    name: str, before: list[Step], after: list[Step], start_ns: int
) -> None:
    with World(start_ns) as world:
        device = DEVICES[name](world)
        if isinstance(device, VirtioMmio) and start_ns & 3:
            set_up(device)
        drive(device, world, before)
        state = save(device, world)

        with World(world.now_ns, bytes(world.ram)) as restored_world:
            restored = DEVICES[name](restored_world)
            restored.restore(state)
            if world.engine is not None and state.running is not None:
                # A saved machine's connections are gone. So that both guests hear the same, here as well.
                world.engine.reset_transport()
            go_on(device)

            assert save(restored, restored_world) == save(device, world)
            go_on(restored)
            go_on(device)
            assert drive(restored, restored_world, after) == drive(device, world, after)
            assert save(restored, restored_world) == save(device, world)
            assert restored_world.ram == world.ram


@pytest.mark.parametrize("name", CHIPS)
@given(before=steps)
def test_a_state_survives_a_text_format(name: str, before: list[Step]) -> None:
    world = World(0)
    device = DEVICES[name](world)
    drive(device, world, before)
    state = device.state()

    text = json.dumps(state._asdict(), default=bytes.hex)

    fields = json.loads(text)
    for field in state._fields:
        if isinstance(getattr(state, field), bytes):
            fields[field] = bytes.fromhex(fields[field])
        elif isinstance(fields[field], list):
            fields[field] = tuple(fields[field])
    assert type(state)(**fields) == state


def test_a_restored_device_drives_its_line_to_where_it_was() -> None:
    world = World(0)
    port = serial(world)
    port.write(1, 1, 2)
    assert world.seen == [True]

    restored_world = World(0)
    serial(restored_world).restore(port.state())

    assert restored_world.seen == [True]


def test_the_timer_has_as_long_to_go_on_another_clock() -> None:
    world, later = World(5 * HZ), World(1_000 * HZ)
    apic = local_apic(world)
    apic.write(LVT_TIMER, 4, 0x30)
    apic.write(Register.INITIAL_COUNT, 4, 500)
    world.now_ns += 100

    restored = local_apic(later)
    restored.restore(apic.state())

    assert apic.deadline_ns is not None
    assert apic.deadline_ns - world.now_ns == 900
    assert restored.deadline_ns == later.now_ns + 900


def test_a_restored_timer_that_runs_is_announced() -> None:
    world = World(0)
    apic = local_apic(world)
    apic.write(LVT_TIMER, 4, 0x30)
    apic.write(Register.INITIAL_COUNT, 4, 500)
    announced: list[int] = []

    LocalApic(world.clock_ns, HZ, lambda: announced.append(1)).restore(apic.state())

    assert announced


def test_a_clock_that_is_being_read_is_restored_without_a_tear() -> None:
    world, later = World(59 * HZ), World(86_400 * HZ)
    rtc = Rtc(world.clock_ns)
    rtc.write(0, 1, 0x0A)
    rtc.read(1, 1)

    restored = Rtc(later.clock_ns)
    restored.restore(rtc.state())

    restored.write(0, 1, 0)
    assert restored.read(1, 1) == 0x59
    later.now_ns += 20_000_000
    assert restored.read(1, 1) == 0x00


def valid(name: str) -> Any:  # noqa: ANN401
    return DEVICES[name](World(0)).state()


DAMAGE: list[tuple[str, str, object]] = [
    *(("serial", field, value) for field in ("divisor", "enabled", "modem") for value in (-1, 1 << 16, "1")),
    ("serial", "received", bytes(INPUT_BYTES_MAX + 1)),
    ("serial", "received", "text"),
    ("serial", "fifos", 1),
    ("serial", "trigger", 2),
    ("serial", "enabled", True),
    ("serial", "modem", 0xB1),
    ("rtc", "ahead_s", AHEAD_S_MAX + 1),
    ("rtc", "ahead_s", -AHEAD_S_MAX - 1),
    ("rtc", "ahead_s", 0.5),
    ("rtc", "held_for_ns", 10_000_001),
    ("rtc", "held_s", -1),
    ("rtc", "selected", 128),
    ("rtc", "memory", bytes(127)),
    ("rtc", "memory", bytes(129)),
    ("rtc", "being_set", (1, 2, 3)),
    ("rtc", "being_set", (256,) * 8),
    ("i8042", "memory", bytes(31)),
    ("i8042", "output", 256),
    ("i8042", "status", None),
    ("i8042", "expecting", 0xAA),
    ("i8042", "expecting", 0x5F),
    ("i8042", "expecting", 0x80),
    ("i8042", "expecting", "x"),
    ("io_apic", "entries", ()),
    ("io_apic", "entries", [0] * 24),
    ("io_apic", "entries", (1 << 64,) * 24),
    ("io_apic", "entries", (1 << 12,) * 24),
    ("io_apic", "lines", 1 << 24),
    ("io_apic", "io_apic_id", 16),
    ("io_apic", "selected", 256),
    ("local_apic", "requested", 1 << 256),
    ("local_apic", "requested", 1 << 15),
    ("local_apic", "in_service", 1),
    ("local_apic", "level", -1),
    ("local_apic", "local_vectors", (0,) * 5),
    ("local_apic", "local_vectors", (1 << 18,) * 6),
    ("local_apic", "command_low", 1 << 12),
    ("local_apic", "command_high", 1),
    ("local_apic", "logical_destination", 1),
    ("local_apic", "destination_format", 0xF000_0000),
    ("local_apic", "divide", 0b100),
    ("local_apic", "initial_count", 1 << 32),
    ("local_apic", "expires_in_ns", 1 << 64),
    ("local_apic", "expires_in_ns", -(1 << 64)),
    ("local_apic", "expires_in_ns", 1.5),
]


@pytest.mark.parametrize(("name", "field", "value"), DAMAGE)
def test_a_damaged_state_is_refused_by_name(name: str, field: str, value: object) -> None:
    with pytest.raises(StateError, match=rf"State\.{field} is .*, not ") as caught:
        changed(valid(name), **{field: value})

    assert caught.value.hint
    assert len(str(caught.value)) < 300


GREATEST: list[tuple[str, str, int]] = [
    ("serial", "divisor", 0xFFFF),
    ("serial", "enabled", 0x0F),
    ("serial", "line_control", 0xFF),
    ("serial", "modem_control", 0x1F),
    ("serial", "modem", 0xF0),
    ("serial", "modem_changes", 0x0F),
    ("serial", "scratch", 0xFF),
    ("serial", "trigger", 14),
    ("rtc", "selected", 127),
    ("rtc", "ahead_s", 253_402_300_799),
    ("rtc", "held_s", 2 * 253_402_300_799),
    ("rtc", "held_for_ns", 10_000_000),
    ("i8042", "output", 0xFF),
    ("i8042", "status", 0xFF),
    ("i8042", "expecting", 0xD4),
    ("io_apic", "io_apic_id", 0xF),
    ("io_apic", "selected", 0xFF),
    ("io_apic", "lines", 0xFF_FFFF),
    ("local_apic", "requested", (1 << 256) - (1 << 16)),
    ("local_apic", "in_service", (1 << 256) - (1 << 16)),
    ("local_apic", "level", (1 << 256) - (1 << 16)),
    ("local_apic", "task_priority", 0xFF),
    ("local_apic", "spurious_vector", 0x3FF),
    ("local_apic", "logical_destination", 0xFF00_0000),
    ("local_apic", "destination_format", 0xFFFF_FFFF),
    ("local_apic", "command_low", 0xC_CFFF),
    ("local_apic", "command_high", 0xFF00_0000),
    ("local_apic", "errors", 0xFF),
    ("local_apic", "errors_shown", 0xFF),
    ("local_apic", "divide", 0b1011),
    ("local_apic", "initial_count", 0xFFFF_FFFF),
    ("local_apic", "expires_in_ns", 1 << 63),
]


@pytest.mark.parametrize(("name", "field", "greatest"), GREATEST)
def test_numbers_have_the_width_of_their_registers(name: str, field: str, greatest: int) -> None:
    state = valid(name)

    assert getattr(changed(state, **{field: greatest}), field) == greatest
    with pytest.raises(StateError, match=field):
        changed(state, **{field: greatest + 1})


@pytest.mark.parametrize(
    ("name", "field", "good", "bad"),
    [
        ("serial", "received", bytes(1024), bytes(1025)),
        ("rtc", "memory", bytes(128), bytes(129)),
        ("rtc", "being_set", (0,) * 8, (0,) * 9),
        ("rtc", "being_set", (0xFF,) * 8, (0,) * 7),
        ("rtc", "being_set", None, (-1,) * 8),
        ("i8042", "memory", bytes(32), bytes(33)),
        ("i8042", "expecting", 0x60, 0x5F),
        ("i8042", "expecting", 0x7F, 0x80),
        ("i8042", "expecting", 0xD1, 0xD0),
        ("io_apic", "entries", (0xFF00_0000_0001_EFFF,) * 24, (0x2_0000,) * 24),
        ("io_apic", "entries", (0,) * 240, (0,) * 241),
        ("local_apic", "local_vectors", (0x3_00FF, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0x3_00FF)),
        ("local_apic", "local_vectors", (0,) * 6, (0,) * 7),
        ("local_apic", "destination_format", 0x0FFF_FFFF, 0x0FFF_FFFE),
        ("local_apic", "expires_in_ns", -(1 << 63), -(1 << 63) - 1),
        ("rtc", "ahead_s", -253_402_300_799, -253_402_300_800),
    ],
)
def test_what_has_several_parts_is_checked_in_each(name: str, field: str, good: object, bad: object) -> None:
    state = valid(name)

    assert getattr(changed(state, **{field: good}), field) == good
    with pytest.raises(StateError, match=field):
        changed(state, **{field: bad})


def test_an_io_apic_takes_no_state_with_another_number_of_pins() -> None:
    world = World(0)
    device = IoApic(world.accept, pins=8)
    before = device.state()

    with pytest.raises(StateError, match="24 pins"):
        device.restore(valid("io_apic"))

    assert device.state() == before


def test_a_timer_takes_no_state_in_which_it_has_longer_to_go_than_its_count() -> None:
    device = local_apic(World(0))
    before = device.state()
    state = changed(before, initial_count=1_000_000, expires_in_ns=2_000_001, requested=1 << 64)

    with pytest.raises(StateError, match="2000001 ns to go"):
        device.restore(state)

    assert device.state() == before
    device.restore(changed(state, expires_in_ns=2_000_000))
    assert device.deadline_ns is None  # masked
    assert device.state().expires_in_ns == 2_000_000


junk = (
    st.integers(-(2**70), 2**70)
    | st.binary(max_size=130)
    | st.none()
    | st.booleans()
    | st.just("1")
    | st.lists(st.integers(-1, 2**65), max_size=30).map(tuple)
)


@pytest.mark.parametrize("name", CHIPS)
@settings(max_examples=200)
@given(data=st.data(), after=steps)
def test_whatever_a_state_holds_the_device_refuses_it_or_works(
    name: str, data: st.DataObject, after: list[Step]
) -> None:
    state = valid(name)
    fields = list(state._fields)
    changes = data.draw(st.dictionaries(st.sampled_from(fields), junk, max_size=3)) if fields else {}
    world = World(1 << 60)
    device = DEVICES[name](world)

    try:
        device.restore(changed(state, **changes))
    except StateError:
        assert device.state() == state
    drive(device, world, after)
    device.state()


@pytest.mark.parametrize(
    ("least", "wanted"), [(0, "not 0 to 64 bytes"), (63, "not 63 to 64 bytes"), (64, "not 64 bytes")]
)
def test_how_many_bytes_there_may_be_is_said(least: int, wanted: str) -> None:
    state = SimpleNamespace(registers=bytes(65))

    with pytest.raises(StateError) as caught:
        require_bytes(state, "registers", 64, least=least)

    assert str(caught.value).endswith(wanted)
