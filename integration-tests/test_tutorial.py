"""The tutorial works as it is written: its programs and commands, with a kernel that is at hand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import images

pytestmark = pytest.mark.slow

TEXT = (images.ROOT / "docs/tutorial.md").read_text()
READY = "at your service on port 5000"
END_TIMEOUT_S = 120


def fenced(language: str) -> list[str]:
    """The code of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, where the commands are found and the test root is a new one."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def run(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-euc", script],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=END_TIMEOUT_S,
        check=False,
    )


def test_the_tutorial_ends_with_a_verified_document(shell: Path) -> None:
    try:
        kernel = images.nitro_kernel()
    except images.ImageError as error:
        pytest.skip(str(error))
    (application,), (ask,) = fenced("c"), fenced("python")
    compile_it, build, boot, call, verify = fenced("sh")
    (shell / "app.c").write_text(application)
    (shell / "ask.py").write_text(ask)
    build, replaced = re.subn(
        r'^KERNEL=.*\n(.*)--kernel-package "\$KERNEL"', rf"\1--kernel {kernel}", build, flags=re.MULTILINE
    )
    assert replaced == 1
    for script in (compile_it, build):
        assert run(script, shell).returncode == 0

    enclave = subprocess.Popen(
        boot.split(),
        cwd=shell,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert enclave.stdout is not None
        assert any(READY in line for line in enclave.stdout)
        called = run(call, shell)
        verified = run(verify, shell)
        refused = run(verify.replace("--root test", ""), shell)
    finally:
        enclave.terminate()
        enclave.communicate()

    assert called.returncode == 0, called.stderr
    assert verified.stdout.startswith("VERIFIED"), verified.stderr
    assert refused.returncode == 1, "a document of the test root is none of AWS's"
