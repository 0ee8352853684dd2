"""The recipe for an unchanged program's network: busybox's wget and httpd, which know nothing of vsock."""

import http.server
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import images

pytestmark = pytest.mark.slow

HOW_TO = images.ROOT / "docs" / "how-to"
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", (HOW_TO / "network.md").read_text(), re.MULTILINE | re.DOTALL)
TIMEOUT_S = 120

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


def test_a_program_reaches_what_is_allowed_and_is_reached(tmp_path: Path, port: int) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    try:
        kernel = images.nitro_kernel()
    except images.ImageError as error:
        pytest.skip(str(error))
    root_of(tmp_path / "root", PROGRAM.format(port=port))
    shutil.copy(HOW_TO / "network" / "outward.c", tmp_path)
    build, launch = COMMANDS
    build = build.replace('--kernel-package "$(eif kernel)"', f"--kernel {kernel}")
    build = build.replace("/outward -i", f"/outward -p {port} -i")
    launch = launch.replace("'api.example.com:443'", f"localhost:{port}").replace("8080:5000", "0:5000")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    subprocess.run(
        ["bash", "-euc", build], cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL
    )

    said = tmp_path / "said"
    with (
        said.open("wb") as messages,
        subprocess.Popen(
            shlex.split(launch),
            cwd=tmp_path,
            env=environment,
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
            (place,) = re.findall(r"published at (\S+)", said.read_text())
            answer = b""
            while not answer:  # until httpd listens, which it does not say
                try:
                    answer = urllib.request.urlopen(f"http://{place}/", timeout=TIMEOUT_S).read()
                except OSError:
                    continue
        finally:
            enclave.terminate()

    assert "from the host" in printed
    assert "not allowed, and failed" in printed
    assert "no name, and failed" in printed
    assert "allowed, and failed" not in printed
    assert f"may not connect to other.example:{port}" in said.read_text()
    assert answer == b"from the enclave\n"
