"""Enclaves for programs without an event loop, and for those with asyncio's."""

import asyncio
from pathlib import Path

import pytest

from nitro_nsm import parse_document
from nitro_vmm import AsyncioEnclave, BlockingEnclave, EnclaveConfig, EnclaveEndedError, Outcome, UsageError
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


def test_with_asyncio(image: Path) -> None:
    async def main() -> tuple[bytes, bytes | None, Outcome]:
        config = EnclaveConfig(eif_path=image)
        async with AsyncioEnclave(config, accelerator=FakeAccelerator(speak_and_wait)) as enclave:
            await asyncio.to_thread(enclave.blocking.wait_for_output, b"hello")
            document = await enclave.attest(nonce=b"1")
            result = await enclave.stop()
            return enclave.console_output, parse_document(document).nonce, result.outcome

    assert asyncio.run(main()) == (b"hello", b"1", Outcome.STOPPED)
