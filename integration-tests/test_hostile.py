"""Guests that want to take their machine with them: each ends with an exit code and a reason, in time.

The images and programs lie beside the repository; where they are absent, the tests are skipped.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import images
from kvm_host import SLOWER, has_processor_of_amd, skip_what_qemu_does_not_survive
from nitro_eif import BuildMetadata, Contents, Metadata, Node, write_cpio, write_eif
from nitro_vmm.testing import tiny_kernel

HOSTILE = images.ROOT.parent / "shared" / "vectors" / "hostile"
END_TIMEOUT_S = 60 * SLOWER
"""Far more than any of these needs, on a machine that has other things to do."""
STOP_TIMEOUT_S = 20 * SLOWER
BOOT_TIMEOUT_S = "3"
ENDED, BOOT_TIMEOUT, PANIC, CRASH, TERMINATED = 0, 5, 10, 11, 143
RESIDENT_MIB_MAX = 400
"""Of the whole process: 64 MiB for the guest, the rest for translated code and Python."""

KERNELS = (
    *("d-cr4_pae_off", "d-leave32_int3", "d-ltr_null_timer", "d-tb_overflow", "min100313", "min24"),
    "B-syscall-loop",
)
NOT_YET: dict[str, str] = {}
"""What does not end as it must today, and why."""

MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def kernel_image(name: str, directory: Path) -> Path:
    """The image of this name, copied; or made of its source, where there is only that."""
    target = directory / f"{name}.eif"
    if (ready := HOSTILE / f"{name}.eif").exists():
        shutil.copy(ready, target)
        return target
    source = HOSTILE / f"{name}.s"
    if not source.exists():
        pytest.skip(f"{HOSTILE} is not here")
    if shutil.which("as") is None:
        pytest.skip("there is no assembler; Debian's package is binutils")
    thing, code = directory / "kernel.o", directory / "kernel"
    subprocess.run(["as", "--64", "-o", thing, source], check=True)
    subprocess.run(["ld", "-Ttext", "0x200000", "--oformat", "binary", "-o", code, thing], check=True)
    return write_image(target, tiny_kernel(code.read_bytes(), memory_bytes=0x10000))


def write_image(path: Path, kernel: bytes, *ramdisks: bytes, cmdline: str = "") -> Path:
    metadata = Metadata(image_name="hostile", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00"))
    write_eif(
        Contents(
            kernel=kernel,
            cmdline=cmdline.encode(),
            ramdisks=list(ramdisks) or [bytes(512)],
            metadata=metadata.pack(),
        ),
        path,
    )
    return path


def marked(name: str) -> object:
    if name not in NOT_YET:
        return name
    return pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=NOT_YET[name]))


@pytest.mark.parametrize("name", [marked(name) for name in KERNELS])
def test_a_hostile_kernel_ends_in_time(tmp_path: Path, name: str) -> None:
    skip_what_qemu_does_not_survive(name)
    image = kernel_image(name, tmp_path)
    options = ["--boot-timeout-s", BOOT_TIMEOUT_S, "--memory-mib", "64", "--vsock-path", f"{tmp_path}/vsock"]
    command = [sys.executable, "-c", MEASURE, images.command("vmm"), "run", "--console", str(image), *options]

    done = run_in_time(command)

    code, resident_mib = (int(word) for word in done.stdout.split())
    assert code in {ENDED, BOOT_TIMEOUT, CRASH}, done.stderr
    assert "vmm: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert resident_mib < RESIDENT_MIB_MAX
    assert list(tmp_path.glob("vsock*")) == []


@pytest.mark.parametrize("name", [marked(name) for name in KERNELS])
def test_a_hostile_kernel_ends_at_sigterm(tmp_path: Path, name: str) -> None:
    skip_what_qemu_does_not_survive(name)
    image = kernel_image(name, tmp_path)
    command = images.launch(image, "--vsock-path", f"{tmp_path}/vsock")
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as vmm:
        try:
            assert vmm.stderr is not None
            assert select.select([vmm.stderr], [], [], END_TIMEOUT_S)[0]
            said = os.read(vmm.stderr.fileno(), 4096)  # it boots

            vmm.send_signal(signal.SIGTERM)
            _, rest = vmm.communicate(timeout=STOP_TIMEOUT_S)
        finally:
            vmm.kill()

    assert vmm.returncode in {TERMINATED, ENDED, CRASH}, said + rest
    assert b"Traceback" not in rest
    assert list(tmp_path.glob("vsock*")) == []


def run_in_time(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command with all that it starts; kill all of that when the time is over."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        errors="replace",
    ) as process:
        try:
            out, errors = process.communicate(timeout=END_TIMEOUT_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


# Programs in a booted enclave.

MODES = {
    "hb": ENDED,
    "floodhb": ENDED,
    "halfopen": ENDED,
    "nsm": ENDED,
    "esc": ENDED,
    "hbspam": ENDED,
    "mem": PANIC,
}
"""How the enclave ends, by what the program in it does."""
ENDLESS = ("console", "fork", "sigill32")
"""What goes on until a signal ends it."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = HOSTILE / "guest-programs.c"
    if not source.exists():
        pytest.skip(f"{HOSTILE} is not here")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler; Debian's package is gcc")
    target = tmp_path_factory.mktemp("program") / "init"
    subprocess.run(["cc", "-w", "-O1", "-static", "-o", target, source], check=True)
    return target


def program_image(directory: Path, program: Path, mode: str) -> Path:
    try:
        kernel = images.nitro_kernel().read_bytes()
    except images.ImageError as error:
        pytest.skip(str(error))
    ramdisk = directory / "init.cpio"
    with ramdisk.open("wb") as archive:
        write_cpio(archive, {"init": Node.file(program.read_bytes(), 0o755)}.items())
    cmdline = f"reboot=k panic=1 console=ttyS0 quiet hb.mode={mode}"
    return write_image(directory / "program.eif", kernel, ramdisk.read_bytes(), cmdline=cmdline)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_hostile_program_ends(tmp_path: Path, program: Path, mode: str) -> None:
    image = program_image(tmp_path, program, mode)
    command = [
        images.command("vmm"),
        "run",
        "--console",
        str(image),
        "--json",
        "--quiet",
        "--memory-mib",
        "256",
    ]

    done = run_in_time(command)

    assert done.returncode == MODES[mode], done.stderr
    assert json.loads(done.stdout)["ExitCode"] == MODES[mode]
    assert f"MODE {mode}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ENDLESS)
def test_a_hostile_program_ends_at_sigterm(tmp_path: Path, program: Path, mode: str) -> None:
    image = program_image(tmp_path, program, mode)
    command = images.launch(image, "--memory-mib", "128")
    console = b""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as vmm:
        try:
            assert vmm.stdout is not None
            while b"HB ok" not in console:
                assert select.select([vmm.stdout], [], [], END_TIMEOUT_S)[0], console
                console += os.read(vmm.stdout.fileno(), 1 << 16)

            vmm.send_signal(signal.SIGTERM)
            rest, said = vmm.communicate(timeout=STOP_TIMEOUT_S)
        finally:
            vmm.kill()

    assert vmm.returncode == TERMINATED, said
    assert b"panic" not in console + rest
    assert b"Traceback" not in said


COMPAT_SYSCALL = r"""
#include <linux/reboot.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>
static void compat(void) {
    /* syscall, in 32-bit code: a far jump leads there */
    unsigned char *code = mmap((void *)0x10000000, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    memcpy(code, "\x0f\x05\xf4", 3);
    struct { uint32_t offset; uint16_t selector; } __attribute__((packed)) far = {0x10000000, 0x23};
    asm volatile("ljmpl *%0" ::"m"(far));
}
int main(void) {
    mkdir("/dev", 0755);
    mount("dev", "/dev", "devtmpfs", 0, 0);
    int console = open("/dev/console", O_WRONLY);
    dup2(console, 1);
    pid_t child = fork();
    if (!child) compat();
    int status = 0;
    waitpid(child, &status, 0);
    printf("32-bit SYSCALL: signal %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    fflush(stdout);
    reboot(LINUX_REBOOT_CMD_RESTART);
    return 0;
}
"""


def test_a_32_bit_syscall_kills_its_program_and_not_the_kernel(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler; Debian's package is gcc")
    source, program = tmp_path / "compat.c", tmp_path / "compat"
    source.write_text(COMPAT_SYSCALL)
    subprocess.run(["cc", "-static", "-o", program, source], check=True)
    image = program_image(tmp_path, program, "none")

    done = run_in_time(images.launch(image, "--memory-mib", "128"))

    # Intel's processors have no such instruction. On AMD's the kernel refuses the call, and HLT comes next.
    killed_by = signal.SIGSEGV if has_processor_of_amd() else signal.SIGILL
    assert f"32-bit SYSCALL: signal {int(killed_by)}" in done.stdout
    assert done.returncode == ENDED
