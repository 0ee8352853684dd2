"""An enclave's life and its verdicts, with processors that are Python functions."""

import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from nitro_nsm import NsmClient, VerifiedDocument, read_test_root, verify
from nitro_vmm import (
    Enclave,
    EnclaveConfig,
    EnclaveEndedError,
    LaunchStoppedError,
    Outcome,
    UsageError,
)
from nitro_vmm.accel import EntryState, Exit, ExitReason
from nitro_vmm.defaults import HEARTBEAT_PORT
from nitro_vmm.enclave.assembly import Assembly, Reach, connect
from nitro_vmm.enclave.boot import Begun
from nitro_vmm.enclave.timeline import Timeline
from nitro_vmm.testing import FakeAccelerator, FakeVcpu
from nitro_vsock import VsockError

# The bounds as they are promised, so that those of the program are held against them.
KEPT_BYTES_MAX = 1 << 20

Program = Callable[[FakeVcpu], Exit]
PATIENCE_S = 60
PANIC = b"Kernel panic - not syncing: no init\n---[ end Kernel panic - not syncing: no init ]---\n"


def enclave_with(image: Path, program: Program, **options: object) -> Enclave:
    config = EnclaveConfig.model_validate({"eif_path": image, **options})
    return Enclave(config, accelerator=FakeAccelerator(program))


def wait_for_kick(vcpu: FakeVcpu) -> Exit:
    return vcpu.wait_for_kick()


def verify_ours(document: bytes) -> VerifiedDocument:
    return verify(document, at=datetime.now(UTC), root=read_test_root().trust)


async def read_all(enclave: Enclave) -> bytes:
    return b"".join([piece async for piece in enclave.console.stream()])


def open_descriptors(image: Path) -> set[str]:
    # The image's mapping has a descriptor of its own, which goes with the traceback of the error.
    entries = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return {entry.name for entry in entries if entry.readlink() != image}


# Verdicts.


@pytest.mark.parametrize(
    ("exit_", "outcome", "reason"),
    [
        (Exit(ExitReason.HALTED), Outcome.ENDED, "the enclave halted for good"),
        (Exit(ExitReason.TRIPLE_FAULT), Outcome.CRASH, "the enclave crashed with a triple fault"),
        (Exit(ExitReason.CRASHED, "nothing at 0x1"), Outcome.CRASH, "the enclave crashed: nothing at 0x1"),
    ],
)
async def test_the_guest_ends_by_itself(image: Path, exit_: Exit, outcome: Outcome, reason: str) -> None:
    async with enclave_with(image, lambda _vcpu: exit_) as enclave:
        result = await enclave.wait()

    assert (result.outcome, result.reason) == (outcome, reason)
    assert result.heartbeat_s is None


async def test_a_panic_is_the_reason_however_the_machine_ends(image: Path) -> None:
    def panic(vcpu: FakeVcpu) -> Exit:
        vcpu.print(PANIC)
        return Exit(ExitReason.TRIPLE_FAULT)

    async with enclave_with(image, panic) as enclave:
        result = await enclave.wait()

    assert result.outcome is Outcome.PANIC
    assert result.reason == "the enclave's kernel panicked: no init"


async def test_a_panic_ends_the_machine(image: Path) -> None:
    def panic(vcpu: FakeVcpu) -> Exit:
        vcpu.print(PANIC)
        return vcpu.wait_for_kick()

    async with enclave_with(image, panic) as enclave:
        result = await enclave.wait()

    assert result.outcome is Outcome.PANIC


async def test_no_heartbeat_in_time(image: Path) -> None:
    async with enclave_with(image, wait_for_kick, boot_timeout_s=0.01) as enclave:
        result = await enclave.wait()

    assert (result.outcome, result.reason) == (Outcome.BOOT_TIMEOUT, "no heartbeat within 0.01 s")


async def test_the_first_reason_to_stop_counts(image: Path) -> None:
    async with enclave_with(image, wait_for_kick) as enclave:
        enclave.terminate("the first")
        enclave.terminate("the second")
        result = await enclave.stop("the third")

    assert (result.outcome, result.reason) == (Outcome.STOPPED, "the first")


async def test_a_stop_after_the_end_changes_nothing(image: Path) -> None:
    async with enclave_with(image, lambda _vcpu: Exit(ExitReason.HALTED)) as enclave:
        before = await enclave.wait()

        assert await enclave.stop() is before


async def test_told_to_end_before_it_was_launched(image: Path) -> None:
    enclave = enclave_with(image, wait_for_kick)
    enclave.terminate("too early")

    with pytest.raises(LaunchStoppedError, match="too early before the guest ran"):
        await enclave.__aenter__()


# The block.


async def test_leaving_the_block_ends_the_enclave(image: Path) -> None:
    async with enclave_with(image, wait_for_kick) as enclave:
        pass

    result = await enclave.wait()
    assert result.outcome is Outcome.STOPPED


async def test_an_error_in_the_block_arrives_as_itself(image: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with enclave_with(image, wait_for_kick):
            raise ZeroDivisionError


async def test_cancelling_the_block_ends_the_enclave(image: Path) -> None:
    with trio.CancelScope() as scope:
        async with enclave_with(image, wait_for_kick) as enclave:
            scope.cancel()
            await trio.sleep_forever()

    result = await enclave.wait()
    assert result.outcome is Outcome.STOPPED


async def test_a_failing_processor_is_an_error_of_the_block(image: Path) -> None:
    def fail(_vcpu: FakeVcpu) -> Exit:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with enclave_with(image, fail):
            await trio.sleep_forever()


async def test_what_cannot_be_launched_leaves_nothing_behind(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "vsock"
    before = open_descriptors(image)
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()

        with pytest.raises(VsockError, match="in use"):
            async with enclave_with(image, wait_for_kick, vsock_path=path):
                pass

    assert open_descriptors(image) == before


async def test_the_sockets_go_with_the_enclave(image: Path, tmp_path: Path) -> None:
    path = trio.Path(tmp_path, "vsock")

    async with enclave_with(image, wait_for_kick, vsock_path=tmp_path / "vsock"):
        during = await path.exists()

    assert during
    assert not await path.exists()


async def test_several_enclaves_in_one_loop(image: Path) -> None:
    def speak(text: bytes) -> Program:
        def program(vcpu: FakeVcpu) -> Exit:
            vcpu.print(text)
            return Exit(ExitReason.HALTED)

        return program

    texts = [b"one", b"two", b"three"]
    async with (
        enclave_with(image, speak(texts[0])) as one,
        enclave_with(image, speak(texts[1])) as two,
        enclave_with(image, speak(texts[2])) as three,
    ):
        printed = [await read_all(enclave) for enclave in (one, two, three)]

    assert printed == texts
    assert len({one.module_id, two.module_id, three.module_id}) == 3
    assert one.measurements == two.measurements


def test_an_enclave_that_was_not_launched(image: Path) -> None:
    with pytest.raises(UsageError, match="not launched"):
        _ = enclave_with(image, wait_for_kick).measurements


# What can be asked of it.


async def test_waiting_for_the_heartbeat_of_an_enclave_that_ends(image: Path) -> None:
    async with enclave_with(image, lambda _vcpu: Exit(ExitReason.HALTED)) as enclave:
        with pytest.raises(EnclaveEndedError, match="halted for good") as caught:
            await enclave.booted()

    assert caught.value.result.outcome is Outcome.ENDED


async def test_a_port_of_an_enclave_without_driver_is_refused(image: Path) -> None:
    async with enclave_with(image, wait_for_kick) as enclave:
        with pytest.raises(ConnectionRefusedError, match="port 5000"):
            await enclave.connect(5000)


async def test_a_document_from_outside_has_the_registers_of_now(image: Path) -> None:
    async with enclave_with(image, wait_for_kick) as enclave:
        guest = NsmClient(enclave._running.nsm.handle)
        before = verify_ours(await enclave.attest(nonce=b"1"))
        guest.extend_pcr(16, b"configuration")
        guest.lock_pcr(16)
        after = verify_ours(await enclave.attest(nonce=b"2", user_data=b"data", public_key=b"key"))
        with pytest.raises(UsageError, match="makes no such document") as refused:
            await enclave.attest(nonce=bytes(4096))

    assert before.module_id == after.module_id == enclave.module_id
    assert before.pcrs[0] == enclave.measurements.pcr0
    assert 16 not in before.pcrs
    assert any(after.pcrs[16])
    assert (after.nonce, after.user_data, after.public_key) == (b"2", b"data", b"key")
    assert "4096 bytes" in refused.value.hint


def connect_with_heartbeat(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None = None, *, sent: bytes = b"\xb7"
) -> socket.socket:
    """Let a guest's heartbeat come before the enclave's tasks run; returns the guest's end."""
    guest, host = socket.socketpair()
    guest.settimeout(PATIENCE_S)
    guest.sendall(sent)

    def connect_quickly(
        config: EnclaveConfig, begun: Begun, resources: ExitStack, timeline: Timeline, reach: Reach
    ) -> Assembly:
        assembly = connect(config, begun, resources, timeline, reach)
        reach.services[HEARTBEAT_PORT](host)
        if error is not None:
            raise error
        return assembly

    monkeypatch.setattr("nitro_vmm.enclave.assembly.connect", connect_quickly)
    return guest


async def test_a_guest_that_is_quicker_than_its_enclave_is_served(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_with_heartbeat(monkeypatch) as guest:
        async with enclave_with(image, wait_for_kick) as enclave:
            await enclave.booted()
            answer = await trio.to_thread.run_sync(guest.recv, 2)

    assert answer == b"\xb7"


async def test_a_wrong_heartbeat_that_comes_before_the_tasks_is_told_by_them(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    config = EnclaveConfig(eif_path=image)

    with connect_with_heartbeat(monkeypatch, sent=b"x") as guest:
        async with Enclave(config, accelerator=FakeAccelerator(wait_for_kick), say=said.append) as enclave:
            answer = await trio.to_thread.run_sync(guest.recv, 2)
            booted = enclave.has_booted

    assert (answer, booted) == (b"", False)
    assert "the enclave's heartbeat was 78, not b7" in said


async def test_a_guest_that_is_quicker_than_an_enclave_that_fails_is_let_go(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_with_heartbeat(monkeypatch, UsageError("it cannot be")) as guest:
        with pytest.raises(UsageError, match="it cannot be"):
            async with enclave_with(image, wait_for_kick):
                pass

        with suppress(ConnectionResetError):
            while guest.recv(1):
                pass


async def test_pausing_an_enclave(image: Path) -> None:
    async with enclave_with(image, wait_for_kick) as enclave:
        await enclave.pause()
        enclave.resume()
        await enclave.stop()

        with pytest.raises(EnclaveEndedError):
            await enclave.pause()


# Ends of launches.


def launch_that(image: Path, ends: Callable[[], object], ran: list[FakeVcpu]) -> Enclave:
    """An enclave whose launch ends after its sockets were made, and before its kernel is loaded."""

    def end_the_launch(text: str) -> None:
        if text.startswith("booting "):
            trio.from_thread.run_sync(ends)
            pause = threading.Event()
            while not enclave._launch._given_up:
                pause.wait(0.001)

    def program(vcpu: FakeVcpu) -> Exit:
        ran.append(vcpu)
        return Exit(ExitReason.HALTED)

    config = EnclaveConfig.model_validate(
        {"eif_path": image, "vsock_path": image.with_name("vsock"), "publish": [f"unix:{image}.port:5000"]}
    )
    enclave = Enclave(config, accelerator=FakeAccelerator(program), say=end_the_launch)
    return enclave


async def test_a_launch_that_is_told_to_end_goes_no_further_and_leaves_nothing(image: Path) -> None:
    ran: list[FakeVcpu] = []
    enclave = launch_that(image, lambda: enclave.terminate("enough"), ran)

    with pytest.raises(LaunchStoppedError, match="enough before the guest ran"):
        await enclave.__aenter__()

    assert ran == []
    assert [path for path in image.parent.iterdir() if path.is_socket()] == []


async def test_a_launch_that_is_cancelled_goes_no_further_and_leaves_nothing(image: Path) -> None:
    ran: list[FakeVcpu] = []

    with trio.CancelScope() as scope:
        async with launch_that(image, scope.cancel, ran):
            pytest.fail("it was launched")

    assert scope.cancelled_caught
    assert ran == []
    assert [path for path in image.parent.iterdir() if path.is_socket()] == []


# The console.


async def test_every_reader_gets_everything_from_the_first_byte(image: Path) -> None:
    def speak(vcpu: FakeVcpu) -> Exit:
        vcpu.print(b"hello")
        return Exit(ExitReason.HALTED)

    async with enclave_with(image, speak) as enclave:
        early = enclave.console.stream()
        first = await early.receive()
        await enclave.wait()
        rest = b"".join([piece async for piece in early])
        late = await read_all(enclave)

    assert first + rest == late == b"hello"


async def test_a_slow_reader_is_told_what_it_has_missed(image: Path) -> None:
    def speak(vcpu: FakeVcpu) -> Exit:
        vcpu.print(b"x" * 10)
        return Exit(ExitReason.HALTED)

    async with enclave_with(image, speak) as enclave:
        await enclave.wait()
        enclave.console.write(b"y" * KEPT_BYTES_MAX)
        stream = enclave.console.stream()
        kept = await stream.receive()

    assert kept == b"y" * KEPT_BYTES_MAX
    assert stream.lost == 10


async def test_the_guest_waits_for_the_sink_until_the_enclave_is_to_end(image: Path) -> None:
    class Slow:
        def __init__(self) -> None:
            self.let_go = trio.Event()
            self.entered = trio.Event()
            self.token = trio.lowlevel.current_trio_token()

        def write(self, _data: bytes, /) -> None:
            trio.from_thread.run_sync(self.entered.set, trio_token=self.token)
            trio.from_thread.run(self.let_go.wait, trio_token=self.token)

        def abandon(self) -> None:
            self.let_go.set()

    def speak(vcpu: FakeVcpu) -> Exit:
        vcpu.print(b"x")
        return Exit(ExitReason.HALTED)

    sink = Slow()
    config = EnclaveConfig(eif_path=image)
    async with Enclave(config, console_sink=sink, accelerator=FakeAccelerator(speak)) as enclave:
        await sink.entered.wait()
        with trio.move_on_after(0.01):
            await enclave.wait()
        waited = enclave.console.stream()
        result = await enclave.stop()

    assert await waited.receive() == b"x"
    assert result.outcome is Outcome.STOPPED


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({}, []),
        ({"quiet_kernel": True}, [b"quiet"]),
        ({"quiet_kernel": True, "cmdline_append": "loglevel=7"}, [b"quiet", b"loglevel=7"]),
    ],
)
async def test_a_kernel_is_told_to_be_quiet_and_measurements_stay(
    image: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], added: list[bytes]
) -> None:
    entries: list[EntryState] = []
    monkeypatch.setattr(FakeVcpu, "enter", lambda _vcpu, entry: entries.append(entry))

    async with enclave_with(image, lambda _vcpu: Exit(ExitReason.HALTED), **options) as enclave:
        await enclave.wait()
    async with enclave_with(image, lambda _vcpu: Exit(ExitReason.HALTED)) as plain:
        pass

    of_the_image = [b"quiet"]  # the fixture's
    words = [word for word in entries[0].command_line.split() if not word.startswith(b"virtio_mmio")]
    assert words[: len(added) + 1] == of_the_image + added
    assert enclave.measurements == plain.measurements
