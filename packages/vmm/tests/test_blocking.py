"""Enclaves for programs without an event loop, and for those with asyncio's."""

import asyncio
import threading
from pathlib import Path

import pytest

from nitro_nsm import parse_document
from nitro_vmm import (
    AsyncioEnclave,
    BlockingEnclave,
    EnclaveConfig,
    EnclaveEndedError,
    LaunchStoppedError,
    Outcome,
    UsageError,
)
from nitro_vmm.accel import Exit, ExitReason
from nitro_vmm.testing import FakeAccelerator, FakeVcpu


def speak_and_wait(vcpu: FakeVcpu) -> Exit:
    vcpu.print(b"hello")
    return vcpu.wait_for_kick()


def spinning(image: Path) -> BlockingEnclave:
    return BlockingEnclave(EnclaveConfig(eif_path=image), accelerator=FakeAccelerator(speak_and_wait))


def test_the_life_of_an_enclave(image: Path) -> None:
    with spinning(image) as enclave:
        enclave.wait_for_output(b"hello", timeout_s=60)
        printed = enclave.console_output
        with pytest.raises(TimeoutError):
            enclave.booted(timeout_s=0.01)
        result = enclave.stop("enough")

    assert printed == b"hello"
    assert (result.outcome, result.reason) == (Outcome.STOPPED, "enough")


def test_leaving_the_block_ends_it(image: Path) -> None:
    enclave = spinning(image)

    with enclave:
        assert enclave.measurements.pcr0
        assert enclave.module_id.startswith("i-")

    assert not enclave._thread.is_alive()
    enclave.close()


def test_what_cannot_be_launched(image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(20 << 20)

    with (
        pytest.raises(UsageError, match="four times"),
        BlockingEnclave(EnclaveConfig(eif_path=image, memory_mib=64)),
    ):
        pass


def test_an_enclave_that_ends_before_it_prints(image: Path) -> None:
    accelerator = FakeAccelerator(lambda _vcpu: Exit(ExitReason.HALTED))

    with BlockingEnclave(EnclaveConfig(eif_path=image), accelerator=accelerator) as enclave:
        with pytest.raises(EnclaveEndedError, match="halted"):
            enclave.wait_for_output(b"never")
        with pytest.raises(ConnectionRefusedError):
            enclave.connect(5000)


def test_listeners(image: Path) -> None:
    with spinning(image) as enclave, enclave.listen(8000) as listener:
        with pytest.raises(TimeoutError):
            listener.accept(timeout_s=0.01)
        with pytest.raises(UsageError):
            enclave.listen(8000)


class Ran:
    """A program that notes that it ran."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, vcpu: FakeVcpu) -> Exit:  # noqa: ARG002 - as programs are
        self.times += 1
        return Exit(ExitReason.HALTED)


def wait_until_given_up(enclave: BlockingEnclave) -> None:
    pause = threading.Event()
    while not enclave._enclave._launch._given_up:
        pause.wait(0.001)


def test_a_launch_that_is_given_up(image: Path) -> None:
    program = Ran()

    def give_up(text: str) -> None:
        if text.startswith("booting "):
            threading.Thread(target=enclave.give_up).start()
            wait_until_given_up(enclave)

    config = EnclaveConfig(eif_path=image)
    enclave = BlockingEnclave(config, accelerator=FakeAccelerator(program), say=give_up)

    with pytest.raises(LaunchStoppedError, match="given up before the guest ran"):
        enclave.__enter__()

    assert program.times == 0


def test_a_launch_that_asyncio_cancels(image: Path) -> None:
    program = Ran()

    async def main() -> None:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def hold(text: str) -> None:
            if text.startswith("booting "):
                loop.call_soon_threadsafe(begun.set)
                wait_until_given_up(enclave.blocking)

        config = EnclaveConfig(eif_path=image)
        enclave = AsyncioEnclave(config, accelerator=FakeAccelerator(program), say=hold)
        task = asyncio.create_task(enclave.__aenter__())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert program.times == 0


def test_with_asyncio(image: Path) -> None:
    async def main() -> tuple[bytes, bytes | None, Outcome]:
        config = EnclaveConfig(eif_path=image)
        async with AsyncioEnclave(config, accelerator=FakeAccelerator(speak_and_wait)) as enclave:
            await asyncio.to_thread(enclave.blocking.wait_for_output, b"hello")
            document = await enclave.attest(nonce=b"1")
            result = await enclave.stop()
            return enclave.console_output, parse_document(document).nonce, result.outcome

    assert asyncio.run(main()) == (b"hello", b"1", Outcome.STOPPED)
