"""Run a command where there is KVM, on any host: ``python tools/kvm.py COMMAND...``.

QEMU emulates a processor with AMD's virtualization, and boots Debian's kernel on it. The host's whole file
system is its root, read-only, so the command and all that it uses are the host's own. Nothing is installed
and no disk image is made. ``/tmp`` and ``/run`` are empty and in memory, and ``/tmp`` is home. An emulated
processor that runs another machine is slow: starting an enclave takes some ten times as long as on the host.

The kernel comes from Debian's archive and stays in ``.cache``.
"""

import argparse
import compileall
import io
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from debian import DEBIAN, DebianError, say
from nitro_eif import Node, write_cpio

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "kvm"
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "kvm", "kvm-amd")
"""What Debian's kernel needs to mount the host's files, and to have KVM. They depend on others."""
TAG = "host"
MARK = "the command ended with"
DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
"""In a module's ``.modinfo`` section, where each entry ends with a zero."""
ENDED = re.compile(rf"{MARK} (\d+)\r*\n".encode())
EMPTY = ("/tmp", "/run")  # noqa: S108 - of the machine
"""What the command does not see of the host's files. They are in memory, and can be written to."""
PASSED_ON = ("PATH", "VIRTUAL_ENV", "LANG", "NITRO_VMM_ACCELERATOR", "NITRO_VMM_BOOT_TIMEOUT_S")
"""Variables that the command gets from here."""
BOOT_TIMEOUT_S = 600
"""How long enclaves of `vmm run` may take to boot in there, if nothing else is asked for."""
HOLD = """
import fcntl, os, signal
vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE01, 0)  # KVM_CREATE_VM
fcntl.ioctl(vm, 0xAE60)  # KVM_CREATE_IRQCHIP
processor = fcntl.ioctl(vm, 0xAE41, 0)  # KVM_CREATE_VCPU
if not os.fork():
    signal.pause()
"""
"""Makes a machine of KVM's that is there for as long as the command runs. With the first and the last one
Linux changes its scheduler's code, and QEMU's emulated processors sometimes run what stood there in between.
So the first one is made while there is one processor."""
OTHERS_ON = "for cpu in /sys/devices/system/cpu/cpu[1-9]*/online; do [ ! -e $cpu ] || echo 1 >$cpu; done"
NEVER_IMPORTED = re.compile(r"/(test|tests|idlelib|lib2to3)/")
"""Folders that programs do not import from; Python's own tests alone take a minute to compile."""
EXIT_LOST = 125
"""Of the command, when the machine ended before it did."""

INIT = """#!/busybox sh
/busybox mkdir -p /proc /dev /host
/busybox mount -t proc proc /proc
/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /busybox insmod /$module; done
/busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=1048576 {tag} /host
/busybox mount -t proc proc /host/proc
/busybox mount -t sysfs sys /host/sys
/busybox mount --bind /dev /host/dev
for place in {empty}; do /busybox mount -t tmpfs -o mode=1777 memory /host$place; done
/busybox ip link set lo up 2>/dev/null
/busybox chroot /host /bin/sh -c {command} </dev/null >/dev/ttyS0 2>&1
echo "{mark} $?" >/dev/ttyS0
/busybox poweroff -f
"""


class KvmError(Exception):
    """The machine cannot be started; the message says why and what to do."""


def kernel() -> tuple[Path, Path]:
    """Debian's kernel and the directory of its modules, unpacked into the cache.

    Raises:
        DebianError: it cannot be fetched.
    """
    tree = CACHE / "linux"
    if not tree.is_dir():
        package = DEBIAN.package("linux-image-amd64")
        unfinished = CACHE / "linux.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        say(f"unpacking {package.name}")
        subprocess.run(["dpkg-deb", "--extract", package, unfinished], check=True)
        unfinished.rename(tree)
    (image,) = tree.glob("boot/vmlinuz-*")
    (modules,) = (path for path in tree.glob("**/lib/modules/*") if path.is_dir())
    return image, modules


def busybox() -> Path:
    """A shell that needs no other files, in the cache.

    Raises:
        DebianError: it cannot be fetched.
    """
    program = CACHE / "busybox"
    if not program.exists():
        package = DEBIAN.package("busybox-static")
        unpacked = CACHE / "busybox.unfinished"
        subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
        next(unpacked.glob("**/bin/busybox")).rename(program)
        shutil.rmtree(unpacked)
    return program


def prepare() -> str:
    """Fetch what is missing; returns the path of QEMU.

    Raises:
        KvmError: there is no QEMU.
        DebianError: something cannot be fetched.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise KvmError("there is no qemu-system-x86_64 here: apt install qemu-system-x86")
    CACHE.mkdir(parents=True, exist_ok=True)
    kernel()
    busybox()
    return qemu


def closure(modules: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The contents of modules and of those that they depend on, in the order in which they have to be loaded.

    Modules that are built into the kernel are not files, and are left out.
    """
    files = {path.name.partition(".")[0].replace("-", "_"): path for path in modules.rglob("*.ko*")}
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        name = name.replace("-", "_")
        if name in loaded or name not in files:
            return
        data = files[name].read_bytes()
        data = lzma.decompress(data) if files[name].suffix == ".xz" else data
        for dependency in (found[1] if (found := DEPENDS.search(data)) else b"").decode().split(","):
            load(dependency)
        loaded[name] = data

    for name in wanted:
        load(name)
    return loaded


def initramfs(modules: dict[str, bytes], command: str) -> bytes:
    """A ramdisk that mounts the host's files and runs a command on them."""
    script = INIT.format(
        modules=" ".join(modules), tag=TAG, mark=MARK, empty=" ".join(EMPTY), command=shlex.quote(command)
    )
    entries = [(name, Node.directory()) for name in ("proc", "dev", "host")]
    entries += [
        ("init", Node.file(script.encode(), 0o755)),
        ("busybox", Node.file(busybox().read_bytes(), 0o755)),
    ]
    entries += [(name, Node.file(data)) for name, data in modules.items()]
    archive = io.BytesIO()
    write_cpio(archive, entries)
    return archive.getvalue()


def run(command: str, *, processors: int, memory_mib: int, timeout_s: float) -> int:
    """Run a shell command in the machine; what it prints goes to standard output.

    Returns:
        Its exit code, or `EXIT_LOST`.

    Raises:
        KvmError: there is no QEMU.
        DebianError: the kernel cannot be fetched.
    """
    qemu = prepare()
    image, modules = kernel()
    ramdisk = CACHE / f"initramfs.{os.getpid()}"
    ramdisk.write_bytes(initramfs(closure(modules, MODULES), command))
    machine = [
        *(qemu, "-M", "q35", "-cpu", "max", "-accel", "tcg,thread=multi", "-no-reboot", "-nodefaults"),
        *("-smp", str(processors), "-m", str(memory_mib), "-display", "none", "-serial", "stdio"),
        *(
            "-kernel",
            str(image),
            "-initrd",
            str(ramdisk),
            "-append",
            "console=ttyS0 loglevel=1 panic=-1 maxcpus=1 mitigations=off no5lvl",
        ),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", f"virtio-9p-pci,fsdev=root,mount_tag={TAG}"),
    ]
    code = EXIT_LOST
    try:
        with subprocess.Popen(machine, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            timer = threading.Timer(timeout_s, process.kill)
            timer.start()
            try:
                assert process.stdout is not None  # noqa: S101 - it is a pipe
                for line in process.stdout:
                    if (ended := ENDED.fullmatch(line)) is not None:
                        code = int(ended[1])
                    elif code == EXIT_LOST:
                        sys.stdout.buffer.write(line.replace(b"\r\n", b"\n"))
                        sys.stdout.buffer.flush()
            finally:
                timer.cancel()
    finally:
        ramdisk.unlink()
    return code


def processors_default() -> int:
    """Two; one on a computer that has much else to do, where two of them mostly wait for each other."""
    return 1 if os.getloadavg()[0] > 2 * (os.cpu_count() or 1) else 2


def compile_modules() -> None:
    """Have what Python may import compiled, because in the machine each start of it would do that anew.

    Nothing is said of what cannot be written: all works without, but slowly.
    """
    for folder in dict.fromkeys(filter(os.path.isdir, (*sys.path, str(ROOT / "integration-tests")))):
        compileall.compile_dir(folder, quiet=2, rx=NEVER_IMPORTED)


def run_here(
    command: list[str],
    *,
    processors: int | None = None,
    memory_mib: int = 3072,
    timeout_s: float = 1800,
    **variables: str,
) -> int:
    """`run` in this directory, with this environment's programs; ``variables`` are more for its environment.

    Without a number of processors it is `processors_default`.

    Raises:
        KvmError: there is no QEMU.
        DebianError: the kernel cannot be fetched.
    """
    compile_modules()
    settings = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | variables
    settings.setdefault("NITRO_VMM_BOOT_TIMEOUT_S", str(BOOT_TIMEOUT_S))
    settings |= {"HOME": "/tmp", "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis"}  # noqa: S108 - in there
    assignments = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    hold = shlex.join([sys.executable, "-I", "-S", "-c", HOLD])
    line = (
        f"{hold}; {OTHERS_ON}; cd {shlex.quote(str(Path.cwd()))} && {assignments} exec {shlex.join(command)}"
    )
    processors = processors or processors_default()
    return run(line, processors=processors, memory_mib=memory_mib, timeout_s=timeout_s)


def main() -> int:
    """Run the command of the command line, in this directory and with this environment's programs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processors", type=int, help="default: 2, and 1 on a busy computer")
    parser.add_argument("--memory-mib", type=int, default=3072)
    parser.add_argument("--timeout-s", type=float, default=1800)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    try:
        code = run_here(
            options.command,
            processors=options.processors,
            memory_mib=options.memory_mib,
            timeout_s=options.timeout_s,
        )
    except (KvmError, DebianError) as error:
        say(f"kvm: {error}")
        return 4
    if code == EXIT_LOST:
        say("kvm: the machine ended before the command did")
    return code


if __name__ == "__main__":
    sys.exit(main())
