"""What an enclave costs that waits."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("nitro_vmm.cli", reason="there is no `vmm run`; install nitro-vmm")

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.append(str(TOOLS))

import images  # noqa: E402
from bench_boot import cpu_clock  # noqa: E402

SLEEP_S = 20
SHARE_MAX = 0.01
# The kernel has work of its own for some time after it has started the init.
SCRIPT = f"#!/bin/busybox sh\nb=/bin/busybox\n$b sleep 3; $b echo asleep; $b sleep {SLEEP_S}; $b echo awake\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None or b"/lib64/ld-linux-x86-64" in Path(busybox).read_bytes():
        pytest.skip("no static busybox; Debian's package is busybox-static")
    programs = tmp_path / "root" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(busybox, programs)
    (programs / "wait").write_text(SCRIPT)
    (programs / "wait").chmod(0o755)
    return programs.parent


@pytest.mark.parametrize("kernel", images.KERNELS)
def test_an_enclave_that_sleeps_leaves_the_processor_to_others(
    tmp_path: Path, root: Path, kernel: str
) -> None:
    try:
        options = images.kernel_options(kernel)
    except images.ERRORS as error:
        pytest.skip(str(error))
    image = str(tmp_path / "idle.eif")
    build = [images.command("eif"), "build", "--rootfs", str(root), "--cmd", "/bin/wait", *options]
    subprocess.run([*build, "--output", image], check=True, stdout=subprocess.DEVNULL)

    used_s: dict[str, float] = {}
    command = [images.command("vmm"), "run", image, "--vsock-path", str(tmp_path / "vsock")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as machine:
        assert machine.stdout is not None
        for line in machine.stdout:
            if (word := line.strip()) in ("asleep", "awake"):
                used_s[word] = time.clock_gettime(cpu_clock(machine.pid))

    print(used_s)
    assert machine.returncode == 0
    assert used_s["awake"] - used_s["asleep"] < SHARE_MAX * SLEEP_S
