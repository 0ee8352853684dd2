"""Saved machines on KVM, wherever ``/dev/kvm`` opens: they go on in others, and damaged ones are refused."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nitro_vmm.accel import EntryState, ExitReason, VmState
from nitro_vmm.accel.kvm import Kvm
from nitro_vmm.accel.kvm.ioctl import Request
from nitro_vmm.accel.kvm.state import PARTS, KvmState, restore_vcpu
from nitro_vmm.address_map import MIB
from nitro_vmm.boot import long_mode
from nitro_vmm.errors import HostError, StateError
from nitro_vmm.machine.bus import AddressSpace
from nitro_vmm.machine.machine import End, Ending, Machine, MachineState
from nitro_vmm.machine.memory import Memory
from nitro_vmm.testing import FakeState
from saved_states import changed

CODE, FLAG = 0x20_0000, 0x20_3000
PATIENCE_S = 30
# mov dx,0x3f8; count: out dx,al; inc rax; push rax; in al,0x10; pop rax; jmp count: IN makes it print at once
COUNT_ALOUD = bytes.fromhex("66baf803 ee 48ffc0 50 e410 58 ebf6")
# mov r12d,'r'; mov ecx,LSTAR; mov eax,'m'; xor edx,edx; wrmsr; mov eax,'d'; mov dr0,rax;
# mov dx,0x3f8; mov al,'.'; out dx,al; wait: in al,0x10; cmp byte [FLAG],0; je wait;
# mov eax,r12d; out dx,al; rdmsr; mov dx,0x3f8; out dx,al; mov rax,dr0; out dx,al;
# again: in al,0x10; jmp again
KEEP = bytes.fromhex(
    "41bc72000000 b9820000c0 b86d000000 31d2 0f30 b864000000 0f23c0"
    "66baf803 b02e ee e410 803c250030200000 74f4"
    "4489e0 ee 0f32 66baf803 ee 0f21c0 ee e410 ebfc"
)
# sti; again: hlt; jmp again
SLEEP = bytes.fromhex("fb f4 ebfd")
# mov dx,0x3f8; mov al,'.'; out dx,al; sti; again: hlt; jmp again
SAY_AND_SLEEP = bytes.fromhex("66baf803 b02e ee fb f4 ebfd")
ENTRY = long_mode.entry_state(CODE, rsp=0x20_8000)


@pytest.fixture(scope="module")
def kvm() -> Kvm:
    try:
        accelerator = Kvm()
        accelerator.create_vm([], AddressSpace()).close()
    except HostError as error:
        pytest.skip(str(error))
    return accelerator


class Guest:
    """A machine that is run in a thread, and what it prints."""

    def __init__(self, kvm: Kvm, memory: Memory, *, processors: int = 1) -> None:
        self.memory = memory
        self.printed = bytearray()
        self.machine = Machine(
            memory, kvm, console=self._print, console_ready=lambda: None, processors=processors
        )
        self._more = threading.Condition()
        self._endings: list[Ending] = []

    @classmethod
    def of(cls, kvm: Kvm, code: bytes, *, processors: int = 1) -> "Guest":
        memory = Memory(4 * MIB)
        long_mode.write(memory.guest)
        memory.guest.slice(CODE, len(code))[:] = code
        return cls(kvm, memory, processors=processors)

    def _print(self, data: bytes) -> None:
        with self._more:
            self.printed += data
            self._more.notify_all()

    def start(self, entry: EntryState | None) -> None:
        self._thread = threading.Thread(target=self._run, args=(entry,))
        self._thread.start()

    def _run(self, entry: EntryState | None) -> None:
        ending = self.machine.run(entry)
        with self._more:
            self._endings.append(ending)
            self._more.notify_all()

    def wait_for(self, condition: Callable[[bytearray], bool]) -> None:
        with self._more:
            found = self._more.wait_for(lambda: condition(self.printed) or self._endings, PATIENCE_S)
            assert found, bytes(self.printed)
            assert not self._endings, self._endings

    def stop(self) -> Ending:
        self.machine.stop()
        self._thread.join(PATIENCE_S)
        return self._endings[0]


def copy(memory: Memory) -> Memory:
    other = Memory(4 * MIB)
    other.guest.slice(0, 4 * MIB)[:] = memory.guest.slice(0, 4 * MIB)
    return other


def saved(guest: Guest) -> MachineState:
    assert guest.machine.pause()
    return guest.machine.state()


def test_a_saved_machine_goes_on_in_another_where_it_was(kvm: Kvm) -> None:
    first = Guest.of(kvm, COUNT_ALOUD)
    first.start(ENTRY)
    first.wait_for(lambda printed: len(printed) > 100)
    state = saved(first)
    first.stop()

    second = Guest(kvm, copy(first.memory))
    second.machine.restore(state)
    second.start(None)
    second.wait_for(lambda printed: len(printed) > 100)
    ending = second.stop()

    both = first.printed + second.printed
    assert both == bytes(index & 0xFF for index in range(len(both)))
    assert ending == Ending(End.STOPPED)


def test_all_kinds_of_registers_are_kept(kvm: Kvm) -> None:
    first = Guest.of(kvm, KEEP)
    first.start(ENTRY)
    first.wait_for(lambda printed: printed == b".")
    state = saved(first)
    first.stop()
    memory = copy(first.memory)
    memory.guest.slice(FLAG, 1)[0] = 1

    second = Guest(kvm, memory)
    second.machine.restore(state)
    second.start(None)
    second.wait_for(lambda printed: len(printed) == 3)
    second.stop()

    assert second.printed == b"rmd"


def test_a_machine_can_be_saved_and_go_on_itself(kvm: Kvm) -> None:
    guest = Guest.of(kvm, COUNT_ALOUD)
    guest.start(ENTRY)

    for _ in range(20):
        saved(guest)
        guest.machine.resume()
    guest.wait_for(lambda printed: len(printed) > 100)
    guest.stop()

    assert guest.printed == bytes(index & 0xFF for index in range(len(guest.printed)))


def test_a_machine_saved_in_hlt_waits_on(kvm: Kvm) -> None:
    first = Guest.of(kvm, SAY_AND_SLEEP, processors=2)
    first.start(ENTRY)
    first.wait_for(lambda printed: printed == b".")
    state = saved(first)
    first.stop()

    second = Guest(kvm, copy(first.memory), processors=2)
    second.machine.restore(state)
    second.start(None)
    still_waits = second.machine.pause()

    assert still_waits
    assert second.stop() == Ending(End.STOPPED)


def test_the_clock_goes_on_from_where_it_was(kvm: Kvm) -> None:
    hour_ns = 3_600_000_000_000
    first, second = Guest.of(kvm, SLEEP), Guest.of(kvm, SLEEP)
    state = first.machine.state()
    assert isinstance(state.vm, KvmState)

    second.machine.restore(changed(state, vm=changed(state.vm, clock_ns=state.vm.clock_ns + hour_ns)))
    after = second.machine.state()

    assert isinstance(after.vm, KvmState)
    assert hour_ns <= after.vm.clock_ns - state.vm.clock_ns < 2 * hour_ns
    first.machine.close()
    second.machine.close()


def vm_state(kvm: Kvm, *, processors: int = 1) -> KvmState:
    guest = Guest.of(kvm, SLEEP, processors=processors)
    state = guest.machine.state().vm
    guest.machine.close()
    assert isinstance(state, KvmState)
    return state


def refusal(kvm: Kvm, state: VmState) -> str:
    guest = Guest.of(kvm, SLEEP)
    board = guest.machine.state().board
    try:
        with pytest.raises(StateError) as caught:
            guest.machine.restore(MachineState(state, board))
    finally:
        guest.machine.close()
    return str(caught.value)


def test_states_of_other_machines_are_refused(kvm: Kvm) -> None:
    state = vm_state(kvm)
    other = bytearray(state.cpuid)
    other[-20] ^= 1

    assert "not saved by KVM" in refusal(kvm, FakeState())
    assert "with 2 processors, and this one has 1" in refusal(kvm, vm_state(kvm, processors=2))
    assert "another processor (CPUID differs in 0x" in refusal(kvm, changed(state, cpuid=bytes(other)))
    assert "no table" in refusal(kvm, changed(state, cpuid=b"x"))
    assert "the counter runs at" in refusal(kvm, changed(state, tsc_hz=2 * state.tsc_hz))
    vcpu = state.vcpus[0]
    longer = changed(vcpu, extended=bytes(len(vcpu.extended) + 64))
    assert "other registers" in refusal(kvm, changed(state, vcpus=(longer,)))


def test_what_the_kernel_refuses_is_refused(kvm: Kvm) -> None:
    state = vm_state(kvm)
    events = changed(state.vcpus[0], events=b"\xff" * len(state.vcpus[0].events))

    assert "KVM_SET_VCPU_EVENTS" in refusal(kvm, changed(state, vcpus=(events,)))


def test_a_register_that_cannot_be_set_is_named(kvm: Kvm) -> None:
    state = vm_state(kvm)
    vcpu = changed(state.vcpus[0], msrs=((0x7FFF_0000, 1),))

    assert "register 0x7fff0000 cannot be set to 0x1" in refusal(kvm, changed(state, vcpus=(vcpu,)))


@pytest.mark.parametrize("field", [part.field for part in PARTS] + ["events", "extended"])
def test_a_part_of_another_length_is_no_state(kvm: Kvm, field: str) -> None:
    vcpu = vm_state(kvm).vcpus[0]
    shorter: dict[str, Any] = {field: getattr(vcpu, field)[:-1]}

    with pytest.raises(StateError, match=field):
        changed(vcpu, **shorter)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tsc_hz", -1),
        ("clock_ns", 1 << 63),
        ("controllers", ()),
        ("controllers", (b"", b"", b"")),
        ("vcpus", ()),
        ("vcpus", (1,)),
        ("cpuid", "text"),
    ],
)
def test_what_is_no_state_cannot_be_made(kvm: Kvm, field: str, value: object) -> None:
    changes: dict[str, Any] = {field: value}
    state = vm_state(kvm)

    with pytest.raises(StateError, match=field):
        changed(state, **changes)


@pytest.mark.parametrize("msrs", [((1,),), ((1, 2, 3),), ((1 << 32, 0),), ((0, -1),), 5])
def test_model_specific_registers_are_pairs_of_numbers(kvm: Kvm, msrs: object) -> None:
    vcpu = vm_state(kvm).vcpus[0]
    change: dict[str, Any] = {"msrs": msrs}

    with pytest.raises(StateError, match="msrs"):
        changed(vcpu, **change)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_state_is_refused_or_runs(kvm: Kvm, data: st.DataObject) -> None:
    state = vm_state(kvm)
    field = data.draw(st.sampled_from([part.field for part in PARTS] + ["events", "extended"]))
    part = bytearray(getattr(state.vcpus[0], field))
    for _ in range(data.draw(st.integers(1, 8))):
        part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    change: dict[str, Any] = {field: bytes(part)}
    damaged = changed(state, vcpus=(changed(state.vcpus[0], **change),))
    guest = Guest.of(kvm, SLEEP)
    vcpu = guest.machine._vm.vcpus[0]

    try:
        guest.machine.restore(MachineState(damaged, guest.machine.state().board))
    except StateError:
        pass
    else:
        vcpu.kick()
        assert vcpu.run().reason in ExitReason
    finally:
        guest.machine.close()


class ForgetfulFile:
    """The kernel's side of a processor that has no registers but a read-only one."""

    def __init__(self) -> None:
        self.put_back: list[tuple[int, int]] = []

    def set_msrs(self, msrs: list[tuple[int, int]]) -> int:
        good = [number for number, _ in msrs].index(0x11) if (0x11, 5) in msrs else len(msrs)
        self.put_back += msrs[:good]
        return good

    def msrs(self, numbers: list[int]) -> tuple[tuple[int, int], ...]:
        return tuple((number, 5) for number in numbers)

    def put(self, request: Request, data: bytes) -> None:
        pass


def test_a_register_that_is_what_it_was_need_not_be_set(kvm: Kvm) -> None:
    file = ForgetfulFile()
    state = changed(vm_state(kvm).vcpus[0], msrs=((0x11, 5), (0x10, 7), (0x12, 9)))

    restore_vcpu(file, state, is_first=False)  # type: ignore[arg-type]

    assert file.put_back == [(0x10, 7), (0x12, 9)]
