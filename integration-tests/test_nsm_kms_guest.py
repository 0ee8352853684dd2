"""An enclave asks the local KMS for its secret, on vsock port 8000, and only the right one gets it."""

import asyncio
import base64
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

pytest.importorskip("moto", reason="the KMS is an extra: pip install 'nitro-nsm[kms]'")

import images
from nitro_eif import Eif, Node, guest_init, measure, write_cpio
from nitro_nsm import ensure_test_root
from nitro_nsm.kms.config import KmsConfig
from nitro_nsm.kms.envelope import open_envelope
from nitro_nsm.kms.server import open_kms, serve
from nitro_nsm.kms.service import Kms

SOURCE = Path(__file__).parent / "guest" / "kms_client.c"
CMDLINE = "reboot=k panic=1 console=ttyS0 quiet"
BOOT_TIMEOUT_S = 120
ROLE = "arn:aws:iam::123456789012:role/enclave"
ANSWER = re.compile(r"-----BEGIN ANSWER-----\n(.*?)\n-----END ANSWER-----", re.DOTALL)


@dataclass
class Vault:
    """A KMS with a secret for one image, the image's recipient key, and what the image is made of."""

    kms: Kms
    key: rsa.RSAPrivateKey
    ciphertext: str
    key_id: str
    kernel: Path
    program: Path
    data: Path

    def build(self, directory: Path, note: bytes) -> Path:
        """An image, which differs from another in `note` only."""
        public = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ramdisks = {
            "init.cpio": {"dev": Node.directory(), "init": Node.file(guest_init(), 0o755)},
            "application.cpio": {
                "rootfs": Node.directory(),
                "rootfs/kms_client": Node.file(self.program.read_bytes(), 0o755),
                "rootfs/recipient.der": Node.file(public),
                "rootfs/ciphertext": Node.file(self.ciphertext.encode()),
                "rootfs/note": Node.file(note),
                "cmd": Node.file(b"/kms_client\n"),
            },
        }
        image = directory / "kms.eif"
        command = [images.command("eif"), "build", "--kernel", str(self.kernel), "--cmdline", CMDLINE]
        for name, files in ramdisks.items():
            with (directory / name).open("wb") as archive:
                write_cpio(archive, files.items())
            command += ["--ramdisk", str(directory / name)]
        subprocess.run([*command, "--output", str(image)], check=True, stdout=subprocess.DEVNULL)
        return image

    def allow(self, image: Path) -> None:
        """Let an image have the secret, and no other."""
        with Eif.open(image) as eif:
            pcr0 = measure(eif).pcr0.hex()
        condition = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": pcr0}}
        enclave = {"Effect": "Allow", "Principal": {"AWS": ROLE}, "Action": "kms:Decrypt", "Resource": "*"}
        rest = {"Effect": "Allow", "Principal": "*", "NotAction": "kms:Decrypt", "Resource": "*"}
        policy = json.dumps({"Statement": [enclave | {"Condition": condition}, rest]})
        self.ask("PutKeyPolicy", KeyId=self.key_id, PolicyName="default", Policy=policy)

    def ask(self, operation: str, **parameters: object) -> Any:  # noqa: ANN401
        return self.kms.handle(operation, parameters, access_key="AKIA")

    def run(self, directory: Path, image: Path, *options: str) -> tuple[dict[str, str], str]:
        """Boot an image; returns what the KMS on port 8000 answered, and what ``vmm`` said of it."""
        done = subprocess.run(
            images.launch(image, *options),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BOOT_TIMEOUT_S,
            check=False,
            env=self.environment,
            cwd=directory,
        )
        console, said = (
            text.decode(errors="replace").replace("\r", "") for text in (done.stdout, done.stderr)
        )
        print(console, said, sep="\n")
        match = ANSWER.search(console)
        assert match is not None
        answer: dict[str, str] = json.loads(match[1])
        return answer, said

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead to the vault's test root."""
        return os.environ | {"XDG_DATA_HOME": str(self.data)}

    @property
    def own_kms(self) -> str:
        """The option that gives an enclave a KMS of its own with the vault's keys."""
        return f"--kms=caller={ROLE},state_path={self.state}"

    @property
    def state(self) -> Path:
        """The file of the vault's keys."""
        return self.data / "keys.json"


@contextmanager
def serving(kms: Kms, path: Path) -> Iterator[None]:
    """The KMS on a unix socket, in a thread."""
    started = threading.Event()
    stop: list[Callable[[], object]] = []

    def ready(_: list[str]) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        started.set()

    def run() -> None:
        try:
            asyncio.run(serve(kms, unix=[path], ready=ready))
        except asyncio.CancelledError:
            pass
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield
    finally:
        for call in stop:
            call()
        thread.join()


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    directory = tmp_path_factory.mktemp("vault")
    program = directory / "kms_client"
    try:
        kernel = images.nitro_kernel()
        subprocess.run(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-o", program, SOURCE], check=True)
    except images.ImageError as error:
        pytest.skip(str(error))
    except FileNotFoundError:
        pytest.skip("there is no C compiler; Debian's package is gcc")
    root = ensure_test_root(directory / "nitro-nsm")
    kms = open_kms(KmsConfig(caller=ROLE, state_path=directory / "keys.json"), root.trust)
    policy = {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}
    made: Any = kms.handle("CreateKey", {"Policy": json.dumps({"Statement": [policy]})}, access_key="AKIA")
    key_id = made["KeyMetadata"]["KeyId"]
    plaintext = base64.b64encode(b"the secret").decode()
    encrypted: Any = kms.handle("Encrypt", {"KeyId": key_id, "Plaintext": plaintext}, access_key="AKIA")
    key = rsa.generate_private_key(65537, 2048)
    return Vault(kms, key, encrypted["CiphertextBlob"], key_id, kernel, program, directory)


@contextmanager
def daemon_and_kms(vault: Vault, directory: Path) -> Iterator[tuple[Path, Path]]:
    """``nsm kms serve``, and a vhost-user daemon that leads a guest's port 8000 to it; socket and log."""
    device, log = directory / "vhost.sock", directory / "kms.log"
    serve_kms = [images.command("nsm"), "kms", "serve", "--json", "--listen", "127.0.0.1:0"]
    serve_kms += ["--caller", ROLE, "--state", str(vault.state)]
    with (
        log.open("wb") as said,
        subprocess.Popen(serve_kms, stdout=subprocess.PIPE, stderr=said, env=vault.environment) as kms,
    ):
        assert kms.stdout is not None
        address = json.loads(kms.stdout.readline())["addresses"][0].removeprefix("http://")
        serve_vsock = [images.command("vhost-user-vsock"), "--guest-cid", "16", "--socket", str(device)]
        serve_vsock += ["--heartbeat", "--proxy", f"8000={address}"]
        with subprocess.Popen(serve_vsock, stderr=subprocess.PIPE) as daemon:
            assert daemon.stderr is not None
            assert b"serving" in daemon.stderr.readline()
            try:
                yield device, log
            finally:
                daemon.terminate()
                daemon.stderr.read()
                kms.terminate()


def test_the_right_image_gets_its_secret_and_in_debug_mode_it_does_not(vault: Vault, tmp_path: Path) -> None:
    image = vault.build(tmp_path, b"a")
    vault.allow(image)

    answer, _ = vault.run(tmp_path, image, vault.own_kms)
    debug, said = vault.run(tmp_path, image, vault.own_kms, "--debug-mode")

    assert open_envelope(base64.b64decode(answer["CiphertextForRecipient"]), vault.key) == b"the secret"
    assert "Plaintext" not in answer
    assert debug["__type"] == "AccessDeniedException"
    assert "vmm: Decrypt refused" in said
    assert "(PCR0) does not hold, the request has " + "00" * 48 in said


def test_a_document_of_five_minutes_ago_is_refused(vault: Vault, tmp_path: Path) -> None:
    image = vault.build(tmp_path, b"a")
    vault.allow(image)
    clock = vault.kms.clock

    vault.kms.clock = lambda: clock() + 301 * 10**9
    with serving(vault.kms, tmp_path / "vsock_8000"):
        late, _ = vault.run(tmp_path, image, "--vsock-path", str(tmp_path / "vsock"))
    vault.kms.clock = clock

    assert late["__type"] == "ValidationException"
    assert late["message"] == "The attestation document is not valid: age."


def test_one_byte_more_is_another_image_and_a_daemon_leads_to_the_kms_too(
    vault: Vault, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    vault.allow(vault.build(tmp_path, b"a"))

    with daemon_and_kms(vault, tmp_path) as (device, log):
        answer, _ = vault.run(other, vault.build(other, b"b"), "--vsock", f"vhost-user:{device}")

    assert answer["__type"] == "AccessDeniedException"
    assert "is not authorized to perform: kms:Decrypt" in answer["Message"]
    assert "kms:RecipientAttestation:ImageSha384" in log.read_text()
    assert "(PCR0) does not hold" in log.read_text()
