"""The security module as a program in an enclave meets it: a real kernel, its driver, and all that AWS's own
check program (``nsm-check`` of aws-nitro-enclaves-nsm-api) asks for."""

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nitro_eif import Eif, measure
from nitro_nsm import DocumentError, NsmClient, Refusal, TrustRoot, aws_root, read_test_root, verify

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import images  # noqa: E402

PORT = 5001
BOOT_TIMEOUT_S = 120
LENGTH = struct.Struct("<H")
INSTANCE_REGISTERS, USER_REGISTERS = range(16), range(16, 32)


@dataclass(frozen=True)
class Enclave:
    """A running one, and the way to its security module."""

    nsm: NsmClient
    stream: socket.socket
    image: Path
    root: TrustRoot

    def ask(self, request: bytes) -> bytes:
        return ask(self.stream, request)


def ask(stream: socket.socket, request: bytes) -> bytes:
    """Send a request to the guest's driver; the reply is empty if the driver refuses."""
    stream.sendall(LENGTH.pack(len(request)) + request)
    with stream.makefile("rb") as replies:
        return replies.read(*LENGTH.unpack(replies.read(LENGTH.size)))


@pytest.fixture(scope="module", params=images.KERNELS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("image")
    root = directory / "root"
    if request.param == "debian" and not (images.CACHE.parent / "debian").exists():
        pytest.skip("Debian's kernel was not fetched yet; `nox -s hello` does it")
    try:
        kernel = images.kernel_options(request.param)
        images.compile_program(Path(__file__).parent / "guest" / "nsm_relay.c", root / "relay")
    except images.ERRORS as error:
        pytest.skip(str(error))
    image = directory / "relay.eif"
    build = ["build", *kernel, "--rootfs", str(root), "--cmd", "/relay", "--output", str(image)]
    subprocess.run([images.command("eif"), *build], check=True, stdout=subprocess.DEVNULL)
    return image


@pytest.fixture
def enclave(image: Path, tmp_path: Path) -> Iterator[Enclave]:
    command = [images.command("vmm"), "run", str(image), "--vsock-path", str(tmp_path / "vsock")]
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    with (
        socket.socket(socket.AF_UNIX) as listener,
        (tmp_path / "console").open("w+") as console,
    ):
        listener.bind(str(tmp_path / f"vsock_{PORT}"))
        listener.listen()
        listener.settimeout(BOOT_TIMEOUT_S)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment
        ) as machine:
            try:
                stream, _ = listener.accept()
                with stream:
                    stream.settimeout(BOOT_TIMEOUT_S)
                    root = read_test_root(tmp_path / "nitro-nsm").trust
                    yield Enclave(NsmClient(lambda request: ask(stream, request)), stream, image, root)
                assert machine.wait(BOOT_TIMEOUT_S) == 0
            except TimeoutError:
                pytest.fail((tmp_path / "console").read_text(errors="replace")[-4000:])
            finally:
                machine.kill()


def test_all_that_aws_checks(enclave: Enclave) -> None:
    nsm = enclave.nsm

    description = nsm.describe_nsm()
    assert description.digest == "SHA384"
    assert description.max_pcrs == 32
    assert description.locked_pcrs == tuple(INSTANCE_REGISTERS)
    assert description.module_id

    with Eif.open(enclave.image) as eif:
        measurements = measure(eif)
    measured = [measurements.pcr0, measurements.pcr1, measurements.pcr2]
    assert [nsm.describe_pcr(index).value for index in range(3)] == measured
    assert nsm.describe_pcr(3).value == bytes(48)
    for index in range(5, 32):
        register = nsm.describe_pcr(index)
        assert register.value == bytes(48)
        assert register.locked == (index in INSTANCE_REGISTERS)

    for index in INSTANCE_REGISTERS:
        with pytest.raises(Refusal):
            nsm.lock_pcr(index)
        with pytest.raises(Refusal):
            nsm.extend_pcr(index, b"data")
    for index in USER_REGISTERS:
        values = {nsm.extend_pcr(index, b"data") for _ in range(10)}
        assert len(values) == 10
        nsm.lock_pcr(index)
        for again in (nsm.lock_pcr, lambda index: nsm.extend_pcr(index, b"data")):
            with pytest.raises(Refusal):
                again(index)
    nsm.lock_pcrs(32)
    with pytest.raises(Refusal):
        nsm.lock_pcrs(33)

    blob = bytes(range(256)) * 4
    for fields in ({"user_data": blob}, {"nonce": blob}, {"public_key": blob}):
        assert nsm.attest(**fields)
    random = [nsm.get_random() for _ in range(16)]
    assert all(random)
    assert len(set(random)) == len(random)


def test_a_document_verifies_under_the_test_root_only(enclave: Enclave) -> None:
    document = enclave.nsm.attest(nonce=b"a nonce", user_data=b"from inside of an enclave")
    now = datetime.now(UTC)
    with Eif.open(enclave.image) as eif:
        measurements = measure(eif)
    pcrs = {0: measurements.pcr0, 1: measurements.pcr1, 2: measurements.pcr2}

    verified = verify(document, at=now, root=enclave.root, pcrs=pcrs, nonce=b"a nonce")

    assert verified.user_data == b"from inside of an enclave"
    with pytest.raises(DocumentError):
        verify(document, at=now, root=aws_root())


def test_nothing_that_a_program_sends_stops_the_module(enclave: Enclave) -> None:
    """QEMU's module is broken for good by a request of no bytes."""
    too_long = enclave.ask(bytes(0x1001))
    answers = [enclave.ask(request) for request in (b"", b"\xff", bytes(0x1000), b"\x9f" * 0x1000)]

    assert too_long == b""
    assert all(b"Error" in answer for answer in answers[1:])
    assert enclave.nsm.describe_nsm().max_pcrs == 32
