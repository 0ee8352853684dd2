"""Enclaves on KVM with a real kernel: several processors, and the same as on the emulated one.

They need a KVM that can run Linux; `nox -s kvm` has one on any host. There the processor is emulated itself,
and a start of Python takes seconds, so nearly all of them run enclaves in this process.
"""

import os
import re
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import images
from kvm_host import require_kvm, skip_what_qemu_does_not_survive
from nitro_eif import Eif, measure
from nitro_nsm import parse_document, read_test_root
from nitro_vmm import Enclave, EnclaveConfig, Outcome, Result
from test_hostile import KERNELS, kernel_image
from test_nsm_guest import check_what_it_said, document_in
from vsock_machines import CONTROL_PORT

pytestmark = pytest.mark.slow

PATIENCE_S = 600
"""How long a boot may take, seconds: long, because the processor of `nox -s kvm` is emulated itself."""
NO_INIT = "rdinit=/nothing init=/nothing"
CHANGING = re.compile(r"(?<=\[) *\d+\.\d+(?=\])|-----BEGIN DOCUMENT-----.*?-----END DOCUMENT-----", re.DOTALL)
"""What an enclave prints of its own: the kernel's times, and signed documents."""


@pytest.fixture(scope="module", autouse=True)
def _kvm() -> None:
    require_kvm()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def image(make: Callable[[], Path]) -> Path:
    try:
        return make()
    except images.ERRORS as error:
        pytest.skip(str(error))


async def run(eif: Path, **settings: Any) -> tuple[Result, str]:  # noqa: ANN401 - of `EnclaveConfig`
    """Run an enclave to its end; returns how it ended and what it printed."""
    defaults = {"accelerator": "kvm", "boot_timeout_s": PATIENCE_S}
    config = EnclaveConfig.model_validate({"eif_path": eif, **defaults, **settings})
    with trio.fail_after(PATIENCE_S):
        async with Enclave(config) as vm:
            result = await vm.wait()
            printed = b"".join([piece async for piece in vm.console.stream()])
    print(printed.decode(errors="replace"), result, sep="\n")
    return result, printed.decode(errors="replace").replace("\r", "")


@pytest.mark.parametrize("processors", [1, 2, 4])
async def test_the_kernel_starts_all_processors(processors: int) -> None:
    config = EnclaveConfig(
        eif_path=image(images.agent),
        accelerator="kvm",
        processors=processors,
        memory_mib=128,
        boot_timeout_s=PATIENCE_S,
        cmdline_append="loglevel=7",
    )
    vm = Enclave(config)

    with trio.fail_after(PATIENCE_S), vm.listen(CONTROL_PORT) as listener:
        async with vm, await listener.accept():
            vm.terminate("it has booted")
        printed = b"".join([piece async for piece in vm.console.stream()])

    if processors == 1:
        assert b"Hypervisor detected: KVM" in printed
    else:
        assert f"Brought up 1 node, {processors} CPUs".encode() in printed
    assert b"kvm-clock: Using msrs" in printed
    assert b"Firmware Bug" not in printed


@pytest.mark.parametrize("kernel", images.KERNELS)
async def test_an_image_boots_and_its_application_ends(kernel: str) -> None:
    result, printed = await run(image(lambda: images.hello(kernel)))

    assert result.outcome is Outcome.ENDED
    assert result.heartbeat_s is not None
    assert "Hello from an enclave." in printed
    assert "the application exited with 0" in printed


async def test_documents_of_the_security_module_verify(tmp_path: Path) -> None:
    eif_path = image(images.nsm_check)
    with Eif.open(eif_path) as eif:
        measured = measure(eif)

    # Quiet, because on a slow machine the kernel else has something to say in the middle of a document.
    result, printed = await run(eif_path, cmdline_append="quiet")

    pcrs = {0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2}
    check_what_it_said(printed, read_test_root(tmp_path / "nitro-nsm"), pcrs)
    assert result.outcome is Outcome.ENDED


@pytest.mark.parametrize("processors", [1, 2])
async def test_a_kernel_that_panics(processors: int) -> None:
    result, printed = await run(image(images.agent), cmdline_append=NO_INIT, processors=processors)

    assert result.outcome is Outcome.PANIC
    assert "Unable to mount root fs" in result.reason
    assert "Kernel panic" in printed


async def test_an_enclave_that_is_silent_for_too_long() -> None:
    result, _ = await run(image(images.agent), boot_timeout_s=1)

    assert result.outcome is Outcome.BOOT_TIMEOUT


async def test_the_same_image_is_the_same_on_both_accelerators() -> None:
    eif_path = image(images.nsm_check)
    emulated = images.emulated_console(eif_path)

    result, printed = await run(eif_path, cmdline_append="quiet")

    assert CHANGING.sub("*", printed) == CHANGING.sub("*", emulated)
    documents = [parse_document(document_in(text)) for text in (printed, emulated)]
    answers = [(each.nonce, each.user_data, each.public_key) for each in documents]
    assert answers[0] == answers[1]
    # PCR4 is of the instance's id, which is made of the test root, and the two have roots of their own.
    pcrs = [{index: value for index, value in each.pcrs.items() if index != 4} for each in documents]
    assert pcrs[0] == pcrs[1]
    assert result.outcome is Outcome.ENDED


@pytest.mark.parametrize("name", KERNELS)
async def test_a_hostile_kernel_ends_in_time(tmp_path: Path, name: str) -> None:
    skip_what_qemu_does_not_survive(name)
    eif_path = kernel_image(name, tmp_path)

    result, _ = await run(eif_path, boot_timeout_s=3, memory_mib=64)

    assert result.outcome in {Outcome.ENDED, Outcome.BOOT_TIMEOUT, Outcome.CRASH}


@pytest.mark.parametrize(
    ("number", "code", "processors", "mark"),
    [
        pytest.param(signal.SIGINT, 130, 2, b"Linux version", id="SIGINT"),
        pytest.param(signal.SIGINT, 130, 4, b"Brought up 1 node, 4 CPUs", id="SIGINT to four processors"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, 2, b"Linux version", id="SIGKILL"),
    ],
)
def test_a_signal_ends_a_guest_that_boots_and_leaves_nothing(
    number: signal.Signals, code: int, processors: int, mark: bytes
) -> None:
    command = [
        images.command("vmm"),
        "run",
        "--console",
        str(image(images.agent)),
        "--accel",
        "kvm",
        "--cpu-count",
        str(processors),
        "--cmdline-append",
        "loglevel=7",
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
    ) as vmm:
        try:
            assert vmm.stdout is not None
            printed = b""
            while mark not in printed:
                assert select.select([vmm.stdout], [], [], PATIENCE_S)[0], printed
                piece = os.read(vmm.stdout.fileno(), 4096)
                assert piece, "the guest has ended"
                printed += piece

            vmm.send_signal(number)
            _, said = vmm.communicate(timeout=PATIENCE_S)
        finally:
            vmm.kill()

    assert vmm.returncode == code, said
    assert b"Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(vmm.pid, 0)
