"""The tutorial of the TLS server works as it is written: a container's image, a published port, a proof."""

import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import images
from nitro_eif.testing import tar_member, tar_of

pytestmark = pytest.mark.slow

TEXT = (images.ROOT / "docs/tutorial-tls.md").read_text()
END_TIMEOUT_S = 120


def fenced(language: str) -> list[str]:
    """The code of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def run(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-euc", script],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=END_TIMEOUT_S,
        check=False,
    )


def container_image(containerfile: str, directory: Path, output: Path) -> None:
    """What ``podman build`` and ``podman save`` make of a Containerfile with only COPY and ENTRYPOINT.

    podman itself needs privileges that a test has not got everywhere.
    """
    layer, config = b"", {}
    for line in containerfile.splitlines():
        match line.split(maxsplit=1):
            case ["COPY", names]:
                source, target = shlex.split(names)
                data = (directory / source).read_bytes()
                layer = tar_of([(tar_member(target.lstrip("/"), mode=0o755), data)])
            case ["ENTRYPOINT", words]:
                config["Entrypoint"] = json.loads(words)
            case other:
                assert other == ["FROM", "scratch"], line
    about = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["server:latest"], "Layers": ["layer.tar"]}]
    (directory / "config.json").write_text(json.dumps(about))
    (directory / "layer.tar").write_bytes(layer)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(output, "w") as archive:
        for name in ("config.json", "layer.tar", "manifest.json"):
            archive.add(directory / name, name)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the tutorial's files, where commands are found, and root and enclaves are its own."""
    if shutil.which("gcc") is None or not Path("/usr/lib/x86_64-linux-gnu/libssl.a").exists():
        pytest.skip("there is no gcc or no static OpenSSL")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    (application,), (client,) = fenced("c"), fenced("python")
    (containerfile,) = fenced("dockerfile")
    (tmp_path / "server.c").write_text(application)
    (tmp_path / "client.py").write_text(client)
    (tmp_path / "Containerfile").write_text(containerfile)
    yield tmp_path
    run("vmm terminate server || true", tmp_path)


class Interceptor:
    """A TLS proxy with a key of its own, as whoever sits between client and enclave could run it."""

    def __init__(self, directory: Path, target: int) -> None:
        key, certificate = directory / "mitm.key", directory / "mitm.pem"
        request = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=mitm"
        )
        subprocess.run(
            [*request.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
        )
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = target
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        anybody = ssl.create_default_context()
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        with (
            suppress(OSError),
            self._listener,
            self._listener.accept()[0] as accepted,
            self._context.wrap_socket(accepted, server_side=True) as client,
            anybody.wrap_socket(socket.create_connection(("127.0.0.1", self._target))) as server,
        ):
            server.sendall(client.recv(4096))
            while data := server.recv(65536):
                client.sendall(data)


def test_a_client_believes_the_enclaves_tls_key_and_no_other(shell: Path) -> None:
    try:
        kernel = images.nitro_kernel()
    except images.ImageError as error:
        pytest.skip(str(error))
    compile_it, containerize, launch, check, stop = fenced("sh")
    launch, replaced = re.subn(r'--kernel-package "\$\(eif kernel\)"', f"--kernel {kernel}", launch)
    assert replaced == 1
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launch, check = launch.replace("8443", str(port)), check.replace("8443", str(port))
    assert "--output server.tar server" in containerize

    compiled = run(compile_it, shell)
    container_image((shell / "Containerfile").read_text(), shell, shell / "server.tar")
    launched = run(launch, shell)
    checked = run(check, shell)
    between = run(f"python3 client.py {Interceptor(shell, port).port}", shell)
    replayed = run(f"nsm verify document.cose --root test --policy policy.json --nonce {'00' * 32}", shell)
    stopped = run(stop, shell)

    assert compiled.returncode == 0, compiled.stderr
    assert launched.returncode == 0, launched.stderr
    assert checked.returncode == 0, checked.stderr
    assert "this TLS connection ends in i-" in checked.stdout
    assert "VERIFIED" in checked.stdout
    assert between.returncode == 1, "a proxy in between must be noticed"
    assert "public_key" in between.stderr
    assert replayed.returncode == 1, "an old document must be noticed"
    assert stopped.returncode == 0, stopped.stderr
