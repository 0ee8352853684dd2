"""Real GDB on a real kernel: a breakpoint by a virtual address, registers, steps, the rest of the boot."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("nitro_vmm.cli", reason="there is no `vmm run`; install nitro-vmm")

import images
from kvm_host import require_kvm

pytestmark = pytest.mark.slow

PATIENCE_S = 600
MSR_LSTAR = 0xC000_0082
KERNEL_PHYSICAL, KERNEL_VIRTUAL = 0x100_0000, 0xFFFF_FFFF_8100_0000
"""Where Linux is loaded, and where it runs (arch/x86/include/asm/page_64_types.h) without KASLR."""

# The kernel tells the processor where system calls go: mov $0xc0000082,%ecx. GDB finds it in the guest's
# memory before paging matters, and stops there by the address that the kernel itself uses.
SCRIPT = f"""
set pagination off
set confirm off
set tcp connect-timeout 60
target remote 127.0.0.1:{{port}}
printf "at the entry: cr3=%#lx\\n", $cr3
find /b /1 {KERNEL_PHYSICAL:#x}, +0x1000000, 0xb9, 0x82, 0x00, 0x00, 0xc0
hbreak *($_ - {KERNEL_PHYSICAL:#x} + {KERNEL_VIRTUAL:#x})
continue
printf "stopped: rip=%#lx\\n", $rip
x/i $rip
stepi
printf "stepped: rcx=%#lx length=%d\\n", $rcx, $rip - $_
delete
stepi 3
detach
quit
"""


# Without breakpoints, because a guest's do nothing where QEMU emulates the processor that runs KVM.
KVM_SCRIPT = """
set pagination off
set confirm off
set tcp connect-timeout 60
target remote 127.0.0.1:{port}
printf "at the entry: cr3=%#lx\\n", $cr3
x/i $rip
set $before = $rip
stepi
printf "stepped: %d\\n", $rip != $before
set $rax = 0x1234
printf "changed: %#lx\\n", $rax
stepi 3
detach
quit
"""


def test_gdb_on_kvm_steps_and_lets_the_kernel_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_kvm()

    text, said, console, code = debugged(tmp_path, monkeypatch, KVM_SCRIPT, "kvm")

    assert "at the entry: cr3=0xa000" in text
    assert "stepped: 1" in text
    assert "changed: 0x1234" in text
    assert "heartbeat after" in said
    assert "the application exited with 0" in console
    assert code == 0


def test_gdb_stops_in_the_kernel_and_lets_it_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, said, console, code = debugged(tmp_path, monkeypatch, SCRIPT, "unicorn")

    assert "at the entry: cr3=0xa000" in text
    assert "stopped: rip=0xffffffff8" in text
    assert "mov    $0xc0000082,%ecx" in text
    assert f"stepped: rcx={MSR_LSTAR:#x}" in text
    assert "heartbeat after" in said
    assert "the application exited with 0" in console
    assert code == 0


def debugged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: str, accelerator: str
) -> tuple[str, str, str, int]:
    """What GDB printed, what vmm said, the console, and vmm's exit code."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    gdb = shutil.which("gdb")
    if gdb is None:
        pytest.skip("there is no gdb; Debian's package is gdb")
    try:
        image = images.hello("nitro")
    except images.ImageError as error:
        pytest.skip(str(error))
    command = images.launch(image, "--accel", accelerator, "--gdb", "0")
    command += ["--boot-timeout-s", str(PATIENCE_S)]
    script = tmp_path / "script"
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as vmm:
        try:
            assert vmm.stderr is not None
            port = next(match[1] for line in vmm.stderr if (match := re.search(r"127\.0\.0\.1:(\d+)", line)))
            script.write_text(commands.format(port=port))
            done = subprocess.run(
                [gdb, "-nx", "-batch", "-x", script],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            console, said = vmm.communicate(timeout=PATIENCE_S)
        finally:
            vmm.kill()

    text = done.stdout + done.stderr
    print(text, said)
    return text, said, console, vmm.returncode
