"""The recipe for an unchanged program's network: busybox's wget and httpd, which know nothing of vsock."""

import http.client
import http.server
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import debian
import images

pytestmark = pytest.mark.slow

HOW_TO = images.ROOT / "docs" / "how-to"
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", (HOW_TO / "network.md").read_text(), re.MULTILINE | re.DOTALL)
TIMEOUT_S = 120

BASH = re.findall(r"^```bash\n(.*?)^```$", (HOW_TO / "network.md").read_text(), re.MULTILINE | re.DOTALL)

PROGRAM = """\
#!/bin/sh
wget -q -O - http://localhost:{port}/ || echo "allowed, and failed"
wget -q -O - http://other.example:{port}/ || echo "not allowed, and failed"
wget -q -O - http://127.0.0.1:{port}/ || echo "no name, and failed"
mkdir /www
echo "from the enclave" > /www/index.html
echo "serving"
exec httpd -f -p 127.0.0.1:8080 -h /www
"""


PROGRAM_WITH_INTERFACE = """\
#!/bin/sh
wget -q -O - http://192.168.127.254:{port}/
mkdir /www
echo "from the enclave" > /www/index.html
echo "serving"
exec httpd -f -p 8080 -h /www
"""


class Greeter(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"from the host\n")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """The port of an HTTP server on this machine."""
    with http.server.ThreadingHTTPServer(("localhost", 0), Greeter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def root_of(directory: Path, program: str) -> None:
    busybox = shutil.which("busybox")
    if busybox is None or b"/lib64/ld-linux-x86-64" in Path(busybox).read_bytes():
        pytest.skip("no static busybox; Debian's package is busybox-static")
    (directory / "bin").mkdir(parents=True)
    shutil.copy(busybox, directory / "bin" / "busybox")
    for name in ("sh", "wget", "httpd", "mkdir"):
        (directory / "bin" / name).symlink_to("busybox")
    (directory / "app").write_text(program)
    (directory / "app").chmod(0o755)


@pytest.fixture
def kernel() -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    try:
        return images.nitro_kernel()
    except images.ImageError as error:
        pytest.skip(str(error))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, where the commands are found, and root and enclaves are its own."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for source in (HOW_TO / "network").iterdir():
        shutil.copy(source, tmp_path)
    return tmp_path


def build(script: str, directory: Path) -> None:
    subprocess.run(["bash", "-euc", script], cwd=directory, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def running(command: str, directory: Path) -> Iterator[list[str]]:
    """An enclave that serves; what it printed until then."""
    with (
        (directory / "said").open("wb") as messages,
        subprocess.Popen(
            shlex.split(command.replace("$PWD", str(directory))),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
        ) as enclave,
    ):
        try:
            assert enclave.stdout is not None
            printed = []
            for line in enclave.stdout:
                printed.append(line.strip())
                if "serving" in line:
                    break
            yield printed
        finally:
            enclave.terminate()


def fetch(place: str) -> bytes:
    """What a server has, which may not listen yet."""
    end_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end_s:
        with suppress(OSError, http.client.HTTPException):
            return bytes(urllib.request.urlopen(f"http://{place}/", timeout=TIMEOUT_S).read())
    pytest.fail(f"no answer from {place}")


def test_a_program_reaches_what_is_allowed_and_is_reached(shell: Path, kernel: Path, port: int) -> None:
    root_of(shell / "root", PROGRAM.format(port=port))
    how_to_build, launch = COMMANDS
    how_to_build = how_to_build.replace('--kernel-package "$(eif kernel)"', f"--kernel {kernel}")
    build(how_to_build.replace("/outward -i", f"/outward -p {port} -i"), shell)
    launch = launch.replace("'api.example.com:443'", f"localhost:{port}").replace("8080:5000", "0:5000")

    with running(launch, shell) as printed:
        (place,) = re.findall(r"published at (\S+)", (shell / "said").read_text())
        answer = fetch(place)

    assert "from the host" in printed
    assert "not allowed, and failed" in printed
    assert "no name, and failed" in printed
    assert "allowed, and failed" not in printed
    assert f"may not connect to other.example:{port}" in (shell / "said").read_text()
    assert answer == b"from the enclave\n"


def test_a_program_has_an_interface(shell: Path, kernel: Path, port: int) -> None:
    try:
        package = debian.DEBIAN.package("gvproxy")
    except debian.DebianError as error:
        pytest.skip(str(error))
    subprocess.run(["dpkg-deb", "--extract", package, shell / "gvproxy-package"], check=True)
    gvproxy = shell / "gvproxy-package" / "usr" / "bin" / "gvproxy"
    root_of(shell / "root", PROGRAM_WITH_INTERFACE.format(port=port))
    compile_it, build_it, network, launch = BASH[0].splitlines()
    build_it = build_it.replace('--module tun --kernel-package "$(eif kernel)"', f"--kernel {kernel}")
    build(f"{compile_it}\n{build_it}", shell)
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"127.0.0.1:{free.getsockname()[1]}"

    network = network.removesuffix(" &").replace("$PWD", str(shell)).replace("gvproxy", str(gvproxy), 1)
    with subprocess.Popen(shlex.split(network), stderr=subprocess.DEVNULL) as host:
        try:
            while not ((shell / "parent_1024").exists() and (shell / "network").exists()):
                assert host.poll() is None
            with running(launch, shell) as printed:
                build(BASH[1].replace("127.0.0.1:8080", place), shell)
                answer = fetch(place)
        finally:
            host.terminate()

    assert "from the host" in printed
    assert answer == b"from the enclave\n"
