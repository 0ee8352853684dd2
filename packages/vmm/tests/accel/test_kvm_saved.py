"""What a saved machine on KVM may hold, and where it goes on; no KVM is needed."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from nitro_vmm.accel.kvm.ioctl import Request, VcpuFile
from nitro_vmm.accel.kvm.state import PARTS, KvmState, VcpuState, restore_vcpu, save_vcpu
from nitro_vmm.accel.kvm.structures import CPUID_ENTRY, CpuidEntry
from nitro_vmm.address_map import PROCESSORS_MAX
from nitro_vmm.errors import HostError, StateError
from saved_states import changed

HZ = 2_500_000_000
TSC = 0x10
VCPU = VcpuState(
    **{part.field: bytes(part.get.size) for part in PARTS},
    events=bytes(64),
    extended=bytes(4096),
    msrs=(),
)
STATE = KvmState(cpuid=b"", tsc_hz=HZ, clock_ns=0, controllers=(bytes(520),) * 3, vcpus=(VCPU,))
CPUID_BYTES = 40


def fits(state: KvmState, **changes: object) -> None:
    here: dict[str, Any] = {"cpuid": b"", "tsc_hz": HZ, "processors": 1, "xsave_bytes": 4096}
    state.check_fits(**{**here, **changes})


ALLOWED = HZ // 1000


@pytest.mark.parametrize("difference", [0, ALLOWED, -ALLOWED])
def test_a_frequency_may_differ_by_a_thousandth(difference: int) -> None:
    fits(changed(STATE, tsc_hz=HZ + difference))


@pytest.mark.parametrize("difference", [ALLOWED + 1, -ALLOWED - 1])
def test_another_frequency_is_another_host(difference: int) -> None:
    with pytest.raises(StateError, match=rf"runs at {HZ + difference} Hz, here at {HZ}"):
        fits(changed(STATE, tsc_hz=HZ + difference))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"processors": 2}, "with 1 processors, and this one has 2"),
        ({"processors": 0}, "with 1 processors, and this one has 0"),
        ({"xsave_bytes": 4095}, "other registers than XSAVE's 4095 bytes"),
        ({"xsave_bytes": 4160}, "other registers than XSAVE's 4160 bytes"),
    ],
)
def test_other_machines_are_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(StateError, match=said):
        fits(STATE, **changes)


def table(*entries: CpuidEntry) -> bytes:
    return b"".join(CPUID_ENTRY.pack(*entry) for entry in entries)


ONE, OTHER, TWO = CpuidEntry(1, 0, 0, 5, 6, 7, 8), CpuidEntry(1, 0, 0, 5, 6, 7, 9), CpuidEntry(2, *[0] * 6)


@pytest.mark.parametrize(
    ("saved", "here", "said"),
    [
        (table(ONE, TWO), table(OTHER, TWO), "CPUID differs in 0x1)"),
        (table(ONE), table(ONE, TWO), "CPUID differs in 0x2)"),
        (table(ONE, TWO), table(TWO), "CPUID differs in 0x1)"),
        (table(ONE), table(TWO), "CPUID differs in 0x1, 0x2)"),
        (table(ONE, TWO), table(TWO, ONE), "CPUID differs in the order of its leaves)"),
        (table(ONE) + b"x", table(ONE), "its CPUID is no table)"),
        (table(ONE)[:-1], table(ONE), "its CPUID is no table)"),
    ],
)
def test_what_differs_in_cpuid_is_named(saved: bytes, here: bytes, said: str) -> None:
    with pytest.raises(StateError) as caught:
        fits(changed(STATE, cpuid=saved), cpuid=here)

    assert str(caught.value).endswith(f"saved on another processor ({said}")


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("tsc_hz", (1 << 48) - 1, 1 << 48),
        ("clock_ns", (1 << 63) - 1, 1 << 63),
        ("cpuid", bytes(256 * CPUID_BYTES), bytes(256 * CPUID_BYTES + 1)),
        ("controllers", (bytes(520),) * 3, (bytes(520),) * 2),
        ("controllers", (bytes(520),) * 3, (bytes(520),) * 4),
        ("controllers", (bytes(520),) * 3, (bytes(521),) * 3),
        ("controllers", (bytes(520),) * 3, (bytearray(520),) * 3),
        ("vcpus", (VCPU,) * PROCESSORS_MAX, (VCPU,) * (PROCESSORS_MAX + 1)),
        ("vcpus", (VCPU,), ()),
    ],
)
def test_what_a_state_may_hold(field: str, good: object, bad: object) -> None:
    changes: dict[str, Any] = {field: good}
    refused: dict[str, Any] = {field: bad}

    assert getattr(changed(STATE, **changes), field) == good
    with pytest.raises(StateError, match=field):
        changed(STATE, **refused)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("events", bytes(64), bytes(63)),
        ("events", bytes(64), bytes(65)),
        ("extended", bytes(4096), bytes(4095)),
        ("extended", bytes(1 << 20), bytes((1 << 20) + 1)),
        ("msrs", ((0xFFFF_FFFF, (1 << 64) - 1),), ((1 << 32, 0),)),
        ("msrs", ((0, 0),) * 2048, ((0, 0),) * 2049),
        ("msrs", (), ((0, 1 << 64),)),
        ("msrs", (), ((-1, 0),)),
        *((part.field, bytes(part.get.size), bytes(part.get.size + 1)) for part in PARTS),
    ],
)
def test_what_a_processor_may_hold(field: str, good: object, bad: object) -> None:
    changes: dict[str, Any] = {field: good}
    refused: dict[str, Any] = {field: bad}

    assert getattr(changed(VCPU, **changes), field) == good
    with pytest.raises(StateError, match=field):
        changed(VCPU, **refused)


class File(VcpuFile):
    """The kernel's side of a processor, which remembers what it is given."""

    def __init__(self, *, fixed: dict[int, int] | None = None) -> None:
        self.fixed = fixed or {}
        """Registers that can only be read."""
        self.done: list[tuple[str, object]] = []
        self.asked: list[int] = []

    def get(self, request: Request) -> bytes:
        return bytes(request.size)

    def put(self, request: Request, data: bytes) -> None:
        self.done.append((request.name, data))

    def xsave(self, size: int) -> bytes:
        return bytes(size)

    def msrs(self, numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
        self.asked = list(numbers)
        return tuple((number, self.fixed.get(number, 0)) for number in self.asked)

    def set_msrs(self, msrs: Sequence[tuple[int, int]]) -> int:
        for done, (number, value) in enumerate(msrs):
            if number in self.fixed:
                return done
            self.done.append((f"{number:#x}", value))
        return len(msrs)


def test_the_first_processors_counter_is_set_from_afar() -> None:
    """The kernel takes a value close to what it expects for an attempt to synchronize, and ignores it."""
    state = changed(VCPU, msrs=((TSC, 1000), (0x6E0, 7)))
    first, other = File(), File()

    restore_vcpu(first, state, is_first=True)
    restore_vcpu(other, state, is_first=False)

    counters = [value for name, value in first.done if name == "0x10"]
    far = counters[0]
    assert isinstance(far, int)
    assert counters[1:] == [1000]
    assert far - 1000 > 60 * 4_000_000_000
    assert [value for name, value in other.done if name == "0x10"] == [1000]
    names = [name for name, _ in first.done]
    assert names.index("0x10") < names.index("0x6e0"), "the counter before its deadline"


def test_a_counter_at_its_end_goes_round() -> None:
    file = File()

    restore_vcpu(file, changed(VCPU, msrs=((TSC, (1 << 64) - 1),)), is_first=True)

    values = [value for name, value in file.done if name == "0x10"]
    assert all(isinstance(value, int) and 0 <= value < 1 << 64 for value in values)
    assert values[1:] == [(1 << 64) - 1]


def test_a_register_that_can_only_be_read_must_be_as_it_was() -> None:
    msrs = ((1, 10), (2, 20), (3, 30), (4, 40))
    file = File(fixed={2: 20, 4: 40})

    restore_vcpu(file, changed(VCPU, msrs=msrs), is_first=True)

    assert [each for each in file.done if each[0].startswith("0x")] == [("0x1", 10), ("0x3", 30)]
    with pytest.raises(HostError, match="register 0x2 cannot be set to 0x14"):
        restore_vcpu(File(fixed={2: 21}), changed(VCPU, msrs=msrs), is_first=True)


def test_events_are_put_back_last_with_all_that_they_say_taken() -> None:
    """Linux, api.rst, "KVM_SET_VCPU_EVENTS": the flags are at byte 20; bits 0 and 1 are NMI and start-up."""
    events = bytes(range(20)) + (8).to_bytes(4, "little") + bytes(range(24, 64))
    file = File()

    restore_vcpu(file, changed(VCPU, events=events), is_first=True)

    name, data = file.done[-1]
    assert name == "SET_VCPU_EVENTS"
    assert data == events[:20] + (8 | 3).to_bytes(4, "little") + events[24:]


def test_memory_types_are_saved_though_older_kernels_do_not_list_them() -> None:
    """Intel SDM vol. 4: eight ranges of two registers each, eleven fixed ones, PAT and the default."""
    file = File()

    state = save_vcpu(file, [0x6E0, 0x277], 4096)

    fixed = [0x250, 0x258, 0x259, *(0x268 + number for number in range(8))]
    ranges = [number for pair in range(8) for number in (0x200 + 2 * pair, 0x201 + 2 * pair)]
    assert file.asked == sorted({0x6E0, 0x277, 0x2FF, *fixed, *ranges})
    assert [number for number, _ in state.msrs] == file.asked
    assert len(state.extended) == 4096
