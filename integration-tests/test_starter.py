"""The project that ``vmm init`` begins runs: it builds its image, and its tests pass."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import images

pytestmark = pytest.mark.slow


def test_a_new_project_builds_its_enclave_and_passes_its_tests(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("there is no gcc or no make")
    try:
        kernel = images.nitro_kernel()
    except images.ImageError as error:
        pytest.skip(str(error))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    project = tmp_path / "project"

    subprocess.run([images.command("vmm"), "init", project], check=True, stdout=subprocess.DEVNULL)
    made = subprocess.run(
        ["make", "-C", project, "test", f"KERNEL=--kernel {kernel}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    shell = "vmm run -d app.eif --name app && vmm wait --booted app && vmm describe app; vmm terminate app"
    booted = subprocess.run(
        ["bash", "-c", shell], cwd=project, env=environment, capture_output=True, text=True, check=True
    )

    assert made.returncode == 0, made.stdout + made.stderr
    assert '"Status": "running"' in booted.stdout
    assert '"HeartbeatSeconds": null' not in booted.stdout
    assert "2 passed" in made.stdout
    assert (project / "app.eif").exists()
