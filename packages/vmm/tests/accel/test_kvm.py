"""KVM with guests of a few instructions, wherever ``/dev/kvm`` opens; what needs no KVM is tested without."""

import ctypes
import errno
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.accel import EntryState, Exit, ExitReason, open_accelerator
from nitro_vmm.accel.kvm import cpuid, ioctl, probe, structures
from nitro_vmm.accel.kvm.collected import CollectedWrites
from nitro_vmm.accel.kvm.debug import KvmDebug
from nitro_vmm.accel.kvm.ioctl import CAP_COALESCED_PIO, Request, System
from nitro_vmm.accel.kvm.stops import Stops
from nitro_vmm.accel.kvm.structures import CpuidEntry, Registers, Segment, SystemRegisters, Table
from nitro_vmm.accel.kvm.vcpu import KvmVcpu
from nitro_vmm.accel.kvm.vm import Kvm, KvmVm
from nitro_vmm.address_map import MIB, RamRange
from nitro_vmm.boot import long_mode
from nitro_vmm.errors import HostError

CODE = 0x20_0000
PATIENCE_S = 30.0
"""How long a guest may take before a test gives up; nothing waits for it when all is well."""


class Ram:
    def __init__(self) -> None:
        self.buffer = mmap.mmap(-1, 4 * MIB)

    def slice(self, address: int, length: int) -> memoryview:
        return memoryview(self.buffer)[address : address + length]


class Bus:
    """Answers reads with 0x88, 0x7788, 0x55667788 and so on, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.said = threading.Event()
        self.finished = 0

    def read_port(self, port: int, size: int) -> int:
        self.asked.append(("in", port, size))
        return 0x1122_3344_5566_7788 & (1 << 8 * size) - 1

    def write_port(self, port: int, size: int, value: int) -> None:
        self.asked.append(("out", port, size, value))
        self.said.set()

    def read_memory(self, address: int, size: int) -> int:
        self.asked.append(("load", address, size))
        return 0x1122_3344_5566_7788 & (1 << 8 * size) - 1

    def write_memory(self, address: int, size: int, value: int) -> None:
        self.asked.append(("store", address, size, value))

    def finish_output(self) -> None:
        self.finished += 1


def entry(rip: int = CODE) -> EntryState:
    return long_mode.entry_state(rip, rsp=0x20_8000, rsi=0x7000)


class Guest:
    """A machine with one processor, which is made to stop when it takes too long."""

    def __init__(self) -> None:
        self.ram = Ram()
        self.bus = Bus()
        long_mode.write(self.ram)
        memory = [(RamRange(0, len(self.ram.buffer)), self.ram.buffer)]
        self.vm = Kvm().create_vm(memory, self.bus)
        self.vcpu = self.vm.vcpus[0]

    def enter(self, code: str) -> None:
        data = bytes.fromhex(code)
        self.ram.slice(CODE, len(data))[:] = data
        self.vcpu.enter(entry())

    def run(self, code: str) -> Exit:
        self.enter(code)
        timer = threading.Timer(PATIENCE_S, self.vcpu.kick)
        timer.start()
        try:
            return self.vcpu.run()
        finally:
            timer.cancel()


@pytest.fixture
def guest() -> Iterator[Guest]:
    try:
        guest = Guest()
    except HostError as error:
        pytest.skip(str(error))
    yield guest
    guest.vm.close()


def test_ports_are_read_and_written(guest: Guest) -> None:
    # mov dx,0x3f8; mov al,'h'; out dx,al; in eax,dx; out dx,eax; cli; hlt
    exit_ = guest.run("66baf803 b068 ee ed ef faf4")

    assert exit_ == Exit(ExitReason.HALTED)
    assert guest.bus.asked == [("out", 0x3F8, 1, 0x68), ("in", 0x3F8, 4), ("out", 0x3F8, 4, 0x5566_7788)]
    assert guest.bus.finished == 2


def test_what_is_printed_arrives_in_order_and_with_few_exits(guest: Guest) -> None:
    # mov dx,0x3f8; mov al,'h'; out dx,al; inc al; out dx,al; in al,dx; out dx,al; cli; hlt
    guest.run("66baf803 b068 ee fec0 ee ec ee faf4")

    assert guest.bus.asked == [
        ("out", 0x3F8, 1, 0x68),
        ("out", 0x3F8, 1, 0x69),
        ("in", 0x3F8, 1),
        ("out", 0x3F8, 1, 0x88),
    ]
    if System().extension(CAP_COALESCED_PIO):
        assert guest.vm.exits()["reads of ports"] == 1
        assert not guest.vm.exits()["writes to ports"]


def test_what_is_printed_before_an_endless_loop_arrives(guest: Guest) -> None:
    guest.enter("66baf803 b068 ee ebfe")
    thread = threading.Thread(target=guest.vcpu.run)
    thread.start()

    assert guest.bus.said.wait(PATIENCE_S)
    guest.vcpu.kick()
    thread.join(PATIENCE_S)

    assert guest.bus.asked == [("out", 0x3F8, 1, 0x68)]


def test_more_is_printed_than_the_ring_holds(guest: Guest) -> None:
    # mov dx,0x3f8; mov ecx,1000; again: mov al,cl; out dx,al; loop again; cli; hlt
    guest.run("66baf803 b9e8030000 88c8 ee e2fb faf4")

    assert [asked[3] for asked in guest.bus.asked] == [count & 0xFF for count in range(1000, 0, -1)]


def test_device_memory_is_read_and_written(guest: Guest) -> None:
    # mov ebx,0xd0000000; mov rax,[rbx]; mov [rbx+8],rax; mov [rbx+16],al; cli; hlt
    exit_ = guest.run("bb000000d0 488b03 48894308 884310 faf4")

    assert exit_ == Exit(ExitReason.HALTED)
    assert guest.bus.asked == [
        ("load", 0xD000_0000, 8),
        ("store", 0xD000_0008, 8, 0x1122_3344_5566_7788),
        ("store", 0xD000_0010, 1, 0x88),
    ]


def test_ram_is_the_hosts_memory(guest: Guest) -> None:
    # mov dword [0x203000],0x12345678; cli; hlt
    exit_ = guest.run("c7042500302000 78563412 faf4")

    assert exit_ == Exit(ExitReason.HALTED)
    assert struct.unpack("<I", guest.ram.slice(0x20_3000, 4)) == (0x1234_5678,)


def test_it_starts_as_the_boot_protocol_says(guest: Guest) -> None:
    # mov eax,esi; out 0x10,eax; mov rax,rsp; out 0x10,eax; mov ax,ss; out 0x10,ax; mov ax,cs; out 0x10,ax;
    # pushfq; pop rax; out 0x10,eax; cli; hlt
    guest.run("89f0 e710 4889e0 e710 668cd0 66e710 668cc8 66e710 9c58 e710 faf4")

    assert [asked[3] for asked in guest.bus.asked] == [0x7000, 0x20_8000, 0x18, 0x10, 2]


def test_it_starts_in_flat_64_bit_mode_with_paging(guest: Guest) -> None:
    guest.enter("f4")

    kernels = guest.vcpu._file
    system, general = kernels.system_registers(), kernels.registers()
    code, *data, task, table = system.segments
    flat = {"base": 0, "limit": 0xFFFF_FFFF, "present": 1, "dpl": 0, "s": 1, "g": 1, "avl": 0, "unusable": 0}
    assert code._asdict() == flat | {"selector": 0x10, "type": 0xB, "db": 0, "l": 1}
    assert {segment == data[0] for segment in data} == {True}
    assert data[0]._asdict() == flat | {"selector": 0x18, "type": 3, "db": 1, "l": 0}
    assert (task.type, task.present, task.s, task.unusable) == (0xB, 1, 0, 0)
    assert table.unusable == 1
    assert (system.cr4, system.efer, system.cr0 & 0x8000_0001) == (0x20, 0x500, 0x8000_0001)
    assert (system.gdt.base, system.gdt.limit) == (entry().gdt_address, entry().gdt_limit)
    assert system.idt == Table(0, 0), "so that an exception without a handler is a triple fault"
    set_ = {"rip": CODE, "rsi": 0x7000, "rsp": 0x20_8000, "rflags": 2}
    assert general._asdict() == dict.fromkeys(Registers._fields, 0) | set_


@pytest.mark.parametrize("code", ["ebfe", "fb f4 ebfd"], ids=["loop", "sleep"])
def test_a_kick_stops_a_guest_that_runs_or_sleeps(guest: Guest, code: str) -> None:
    guest.enter("b041 e610" + code)
    exits: list[Exit] = []
    thread = threading.Thread(target=lambda: exits.append(guest.vcpu.run()))
    thread.start()
    assert guest.bus.said.wait(PATIENCE_S)

    guest.vcpu.kick()
    thread.join(PATIENCE_S)

    assert exits == [Exit(ExitReason.KICKED)]


def test_a_kick_before_a_run_stops_it_and_the_next_run_goes_on(guest: Guest) -> None:
    guest.vcpu.kick()
    guest.vcpu.kick()

    assert guest.run("b041 e610 faf4") == Exit(ExitReason.KICKED)
    assert guest.bus.asked == []
    assert guest.vcpu.run() == Exit(ExitReason.HALTED)
    assert guest.bus.asked == [("out", 0x10, 1, 0x41)]


def test_a_guest_that_sleeps_with_interrupts_on_is_not_taken_for_dead(guest: Guest) -> None:
    guest.enter("b041 e610 fb f4 ebfd")
    thread = threading.Thread(target=guest.vcpu.run)
    thread.start()
    assert guest.bus.said.wait(PATIENCE_S)

    for _ in range(100):
        guest.vcpu.look_for_halt()

    assert thread.is_alive()
    guest.vcpu.kick()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_an_exception_without_a_handler_is_a_triple_fault(guest: Guest) -> None:
    assert guest.run("0f0b") == Exit(ExitReason.TRIPLE_FAULT)


def test_a_write_can_signal_an_eventfd_without_an_exit(guest: Guest) -> None:
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    guest.vm.signal_on_write(0xD000_0050, 1, eventfd)

    # mov ebx,0xd0000050; mov ecx,3; again: mov dword [rbx],1; loop again; mov dword [rbx],2; cli; hlt
    guest.run("bb500000d0 b903000000 c70301000000 e2f8 c70302000000 faf4")

    assert os.eventfd_read(eventfd) == 3
    assert guest.bus.asked == [("store", 0xD000_0050, 4, 2)]
    assert guest.vm.exits()["writes to device memory"] == 1
    os.close(eventfd)


def test_a_machine_can_be_closed_twice_and_its_lines_outlive_it(guest: Guest) -> None:
    line = guest.vm.line(5)
    line(True)

    guest.vm.close()
    guest.vm.close()
    line(False)


def test_a_device_may_come_after_the_end(guest: Guest) -> None:
    guest.vm.close()

    guest.vm.signal_on_write(0xD000_0050, 1, -1)


def test_the_tsc_counts_as_the_machine_says(guest: Guest) -> None:
    assert guest.vm.tsc_hz > 100_000_000


def test_functions_run_under_the_lock_of_the_bus(guest: Guest) -> None:
    called: list[bool] = []

    guest.vm.locked(lambda: called.append(True))

    assert called == [True]


def test_a_machine_that_cannot_be_made_leaves_nothing_open(guest: Guest) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    memory = mmap.mmap(-1, 4096)
    system = System()

    with pytest.raises(HostError, match=r"KVM_SET_USER_MEMORY_REGION: .* argument"):
        KvmVm(system, [(RamRange(1, 4096), memory)], Bus())
    system.close()

    assert set(Path("/proc/self/fd").iterdir()) == before


def test_the_accelerator_is_known_by_its_name(guest: Guest) -> None:
    assert open_accelerator("kvm").name == "kvm"


def test_a_probe_says_yes_or_why_not() -> None:
    verdict = probe.probe()

    assert verdict.usable == (not verdict.reason)


def test_a_probe_of_a_host_without_the_device_says_what_to_do(tmp_path: Path) -> None:
    verdict = probe.probe(lambda: System(tmp_path / "kvm"))

    assert not verdict.usable
    assert str(tmp_path) in verdict.reason
    assert "kvm_intel or kvm_amd" in verdict.hint


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EACCES, "group kvm"),
        (errno.EPERM, "container"),
        (errno.ENODEV, "firmware"),
        (errno.EBUSY, ""),
    ],
)
def test_a_device_that_does_not_open_is_explained(
    number: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(HostError, match=os.strerror(number)) as caught:
        System()

    assert hint in caught.value.hint


def test_a_file_that_is_no_kvm_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kvm"
    path.touch()
    before = set(Path("/proc/self/fd").iterdir())

    with pytest.raises(HostError, match="kvm is not KVM: KVM_GET_API_VERSION: Inappropriate ioctl") as caught:
        System(path)

    assert "kvm_intel or kvm_amd" in caught.value.hint
    assert set(Path("/proc/self/fd").iterdir()) == before


# As a C compiler has them on x86-64 from <linux/kvm.h>.
NUMBERS = {
    "GET_API_VERSION": 0xAE00,
    "CREATE_VM": 0xAE01,
    "GET_MSR_INDEX_LIST": 0xC004_AE02,
    "CHECK_EXTENSION": 0xAE03,
    "GET_VCPU_MMAP_SIZE": 0xAE04,
    "GET_SUPPORTED_CPUID": 0xC008_AE05,
    "CREATE_VCPU": 0xAE41,
    "SET_USER_MEMORY_REGION": 0x4020_AE46,
    "SET_TSS_ADDR": 0xAE47,
    "CREATE_IRQCHIP": 0xAE60,
    "IRQ_LINE": 0x4008_AE61,
    "GET_IRQCHIP": 0xC208_AE62,
    "SET_IRQCHIP": 0x8208_AE63,
    "REGISTER_COALESCED_MMIO": 0x4010_AE67,
    "SET_GSI_ROUTING": 0x4008_AE6A,
    "IOEVENTFD": 0x4040_AE79,
    "SET_CLOCK": 0x4030_AE7B,
    "GET_CLOCK": 0x8030_AE7C,
    "RUN": 0xAE80,
    "GET_REGS": 0x8090_AE81,
    "SET_REGS": 0x4090_AE82,
    "GET_SREGS": 0x8138_AE83,
    "SET_SREGS": 0x4138_AE84,
    "GET_MSRS": 0xC008_AE88,
    "SET_MSRS": 0x4008_AE89,
    "SET_GUEST_DEBUG": 0x4048_AE9B,
    "TRANSLATE": 0xC018_AE85,
    "SET_SIGNAL_MASK": 0x4004_AE8B,
    "GET_LAPIC": 0x8400_AE8E,
    "SET_LAPIC": 0x4400_AE8F,
    "SET_CPUID2": 0x4008_AE90,
    "GET_MP_STATE": 0x8004_AE98,
    "SET_MP_STATE": 0x4004_AE99,
    "GET_VCPU_EVENTS": 0x8040_AE9F,
    "SET_VCPU_EVENTS": 0x4040_AEA0,
    "GET_DEBUGREGS": 0x8080_AEA1,
    "SET_DEBUGREGS": 0x4080_AEA2,
    "GET_TSC_KHZ": 0xAEA3,
    "GET_XSAVE": 0x9000_AEA4,
    "SET_XSAVE": 0x5000_AEA5,
    "GET_XCRS": 0x8188_AEA6,
    "SET_XCRS": 0x4188_AEA7,
    "GET_XSAVE2": 0x9000_AECF,
}


def test_requests_have_the_numbers_of_the_kernels_header() -> None:
    assert {request.name: int(request) for request in Request} == NUMBERS


u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
segments = st.builds(Segment, u64, u32, u16, *[u8] * 9)
tables = st.builds(Table, u64, u16)


@given(
    st.builds(
        SystemRegisters,
        st.tuples(*[segments] * 8),
        tables,
        tables,
        *[u64] * 7,
        st.binary(min_size=32, max_size=32),
    )
)
def test_system_registers_survive_their_structure(registers: SystemRegisters) -> None:
    data = registers.pack()

    assert len(data) == 312
    assert SystemRegisters.unpack(data) == registers


def leaf(function: int, *, subleaf: int = 0, value: int = 0xFFFF_FFFF) -> CpuidEntry:
    return CpuidEntry(function, subleaf, 1, value, value, value, value)


def seen(supported: CpuidEntry, *, apic_id: int = 1, processors: int = 2) -> CpuidEntry:
    (found,) = cpuid.for_guest([supported], apic_id=apic_id, processors=processors, tsc_deadline=True)
    return found


def test_a_guest_sees_a_hypervisor_and_no_nested_virtualization() -> None:
    basic, extended, svm = seen(leaf(1)), seen(leaf(0x8000_0001)), seen(leaf(0x8000_000A))

    assert basic.ecx == 0xFFFF_FFFF & ~(1 << 5)
    assert extended.ecx == 0xFFFF_FFFF & ~(1 << 2)
    assert svm == leaf(0x8000_000A, value=0)
    assert seen(leaf(1, value=0)).ecx == 1 << 31 | 1 << 24


def test_a_guest_sees_its_own_topology() -> None:
    assert seen(leaf(1)).ebx == 0x0102_FFFF
    assert seen(leaf(1, value=0), processors=1).edx == 0
    assert seen(leaf(4, value=0x63)).eax == 0x63 | 1 << 14 | 1 << 26  # a cache of level 3: all cores share it
    assert seen(leaf(4, value=0x21)).eax == 0x21 | 1 << 26  # one of level 1
    assert seen(leaf(4, value=0)) == leaf(4, value=0)
    assert seen(leaf(0xB)).edx == 1
    assert seen(leaf(0xB)).ebx == 0
    assert seen(leaf(0x8000_0008, value=0)).ecx == 1


@pytest.mark.parametrize(("apic_id", "processors"), [(0, 1), (0, 3), (2, 3)])
def test_each_processor_is_a_core_of_one_package(apic_id: int, processors: int) -> None:
    def ask(function: int, *, subleaf: int = 0, value: int = 0xFFFF_FFFF) -> CpuidEntry:
        return seen(leaf(function, subleaf=subleaf, value=value), apic_id=apic_id, processors=processors)

    basic = ask(1)
    assert basic.ebx == apic_id << 24 | processors << 16 | 0xFFFF
    assert basic.edx >> 28 & 1 == (processors > 1)
    assert basic.edx | 1 << 28 == 0xFFFF_FFFF
    assert ask(1, value=0).edx == (1 << 28 if processors > 1 else 0)
    assert ask(0xB, subleaf=5)[3:] == (0, 0, 0xFF, apic_id)
    assert ask(0x1F)[3:] == (0, 0, 0xFF, apic_id)
    assert ask(0x8000_001E)[3:] == (apic_id, apic_id, 0, 0)
    assert ask(0x8000_0008).ecx == 0xFFFF_0000 | processors - 1


@pytest.mark.parametrize("function", [4, 0x8000_001D])
@pytest.mark.parametrize(("level", "users"), [(1, 1), (2, 1), (3, 5), (4, 1)])
def test_the_third_cache_is_shared_by_all_processors(function: int, level: int, users: int) -> None:
    kind, flags = 1, 0x1F << 8
    cache = leaf(function)._replace(eax=0xFFFF_C000 | flags | level << 5 | kind)

    found = seen(cache, processors=5)

    assert found.eax & 0x3FFF == flags | level << 5 | kind
    assert (found.eax >> 14 & 0xFFF) + 1 == users
    assert (found.eax >> 26) + 1 == 5
    assert found[4:] == cache[4:]
    assert seen(leaf(function, value=0)) == leaf(function, value=0), "no more caches"


@pytest.mark.parametrize("function", [6, 0xA, 0x8000_000A, 0x8000_001F])
def test_what_a_guest_has_not(function: int) -> None:
    assert seen(leaf(function)) == leaf(function, value=0)


@pytest.mark.parametrize("there", [True, False])
def test_the_timers_deadline_is_the_kernels(there: bool) -> None:  # noqa: FBT001 - a parameter of the test
    (found,) = cpuid.for_guest([leaf(1, value=0)], apic_id=0, processors=1, tsc_deadline=there)

    assert found.ecx == 1 << 31 | (1 << 24 if there else 0)


@pytest.mark.parametrize(("bits", "offered"), [(1, True), (8, True), (9, True), (0, False), (6, False)])
def test_whether_kvm_clock_is_offered(bits: int, offered: bool) -> None:  # noqa: FBT001
    assert cpuid.offers_kvm_clock([leaf(1), leaf(0x4000_0001, value=bits)]) is offered


def test_the_processors_name_is_in_three_leaves() -> None:
    words = struct.unpack("<12I", b"  Fine  Processor @ 3 GHz".ljust(48, b"\0"))
    leaves = [
        CpuidEntry(0x8000_0002 + number, 0, 0, *words[4 * number : 4 * number + 4]) for number in range(3)
    ]

    assert cpuid.name(reversed(leaves)) == "Fine Processor @ 3 GHz"
    assert cpuid.name([]) == "a processor"


def test_what_is_not_filtered_is_the_hosts() -> None:
    assert seen(leaf(7)) == leaf(7)
    assert seen(leaf(0x4000_0001)) == leaf(0x4000_0001)


def test_collected_writes_are_taken_once_across_the_end_of_the_ring() -> None:
    page = bytearray(4096)
    ring = CollectedWrites(page, 0)
    struct.pack_into("<II", page, 0, 169, 1)
    struct.pack_into("<QIIB", page, 8 + 24 * 169, 0x3F8, 1, 1, 0x41)
    struct.pack_into("<QIIH", page, 8, 0x3F8, 2, 1, 0x4243)
    assert ring

    assert list(ring.take()) == [(0x3F8, 1, 0x41), (0x3F8, 2, 0x4243)]

    assert not ring
    assert list(ring.take()) == []


@pytest.mark.parametrize(
    ("number", "outcome"),
    [(errno.EAGAIN, ioctl.EXIT_INTR), (errno.EINTR, InterruptedError), (errno.EINVAL, HostError)],
)
def test_a_run_that_fails_is_to_be_repeated_or_an_error(
    number: int, outcome: int | type[Exception], guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    file = guest.vm._file.create_vcpu(1)
    monkeypatch.setattr(ioctl, "_run", fail)

    if isinstance(outcome, int):
        assert file.run() == outcome
    else:
        with pytest.raises(outcome):
            file.run()
    file.close()


class FakeFile:
    """The kernel's side of a processor, which exits as it is told."""

    def __init__(self, reason: int, details: bytes = b"") -> None:
        self.shared = bytearray(structures.RUN_EXIT) + details.ljust(64, b"\0")
        self._reason = reason

    def set_signals(self, blocked: set[int]) -> None:
        self.blocked = blocked

    def run(self) -> int:
        return self._reason

    def registers(self) -> Registers:
        return Registers(rip=0x1234)


@pytest.mark.parametrize(
    ("reason", "details", "exit_"),
    [
        (ioctl.EXIT_SHUTDOWN, b"", Exit(ExitReason.TRIPLE_FAULT)),
        (
            ioctl.EXIT_FAIL_ENTRY,
            struct.pack("<Q", 0x80000021),
            Exit(
                ExitReason.CRASHED,
                "the host's processor refused to run the guest (reason 0x80000021), at 0x1234",
            ),
        ),
        (
            ioctl.EXIT_INTERNAL_ERROR,
            struct.pack("<IIQB15s", 1, 3, 1, 2, b"\x0f\xae\xff"),
            Exit(ExitReason.CRASHED, "an instruction that KVM cannot emulate (0f ae), at 0x1234"),
        ),
        (
            ioctl.EXIT_INTERNAL_ERROR,
            struct.pack("<IIQ", 1, 0, 0),
            Exit(ExitReason.CRASHED, "an instruction that KVM cannot emulate, at 0x1234"),
        ),
        (
            ioctl.EXIT_INTERNAL_ERROR,
            struct.pack("<I", 77),
            Exit(ExitReason.CRASHED, "an error within KVM (77), at 0x1234"),
        ),
        (99, b"", Exit(ExitReason.CRASHED, "an exit that is not known here (99), at 0x1234")),
    ],
)
def test_exits_that_end_a_guest_say_why(reason: int, details: bytes, exit_: Exit) -> None:
    file = FakeFile(reason, details)
    vm: Any = None  # which is asked only for a page to watch
    kernels: Any = file
    debug = KvmDebug(kernels, 0)
    vcpu = KvmVcpu(kernels, Bus(), threading.RLock(), stops=Stops(vm, []), debug=debug, halted=lambda: True)

    assert vcpu.run() == exit_
