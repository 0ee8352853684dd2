"""The guest's init in a real kernel: what it gives to the application, and what it says when it gives up."""

import shutil
import socket
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

import images
from nitro_eif import Node, guest_init, write_cpio

ROOT = Path(__file__).resolve().parent.parent

CMDLINE = "reboot=k panic=1 console=ttyS0 quiet"
BOOT_TIMEOUT_S = 60


@dataclass(frozen=True)
class Ended:
    """What an enclave left behind."""

    code: int
    console: str


@pytest.fixture(scope="module")
def kernel() -> Path:
    pytest.importorskip("nitro_vmm.cli", reason="there is no `vmm run`; install nitro-vmm")
    try:
        return images.nitro_kernel()
    except images.ImageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def busybox() -> Node:
    path = shutil.which("busybox")
    if path is None or b"/lib64/ld-linux-x86-64" in (program := Path(path).read_bytes()):
        pytest.skip("no static busybox; Debian's package is busybox-static")
    return Node.file(program, 0o755)


def run(directory: Path, kernel: Path, *ramdisks: dict[str, Node]) -> Ended:
    """Boot these ramdisks, to the end of the enclave."""
    image = str(directory / "test.eif")
    build = [images.command("eif"), "build", "--kernel", str(kernel), "--cmdline", CMDLINE, "--output", image]
    for index, files in enumerate(ramdisks):
        path = directory / f"{index}.cpio"
        with path.open("wb") as archive:
            write_cpio(archive, files.items())
        build += ["--ramdisk", str(path)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    command = [images.command("vmm"), "run", "--console", image, "--vsock-path", str(directory / "vsock")]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_TIMEOUT_S, check=False
    )
    console = done.stdout.decode(errors="replace").replace("\r", "")
    print(console, done.stderr.decode(errors="replace"), sep="\n")
    return Ended(done.returncode, console)


def bootstrap(**files: Node) -> dict[str, Node]:
    return {"dev": Node.directory(), "init": Node.file(guest_init(), 0o755), **files}


def application(busybox: Node, script: str, **files: str) -> dict[str, Node]:
    """A second ramdisk: busybox as a root file system, a script to run, and what the init reads."""
    return {
        "rootfs": Node.directory(),
        "rootfs/bin": Node.directory(),
        "rootfs/bin/busybox": busybox,
        "rootfs/bin/sh": Node.symlink("busybox"),
        "rootfs/work": Node.directory(0o777),
        "rootfs/work/script": Node.file(script.encode(), 0o755),
        **{name: Node.file(text.encode()) for name, text in files.items()},
    }


def test_arguments_and_variables_with_newlines(tmp_path: Path, kernel: Path, busybox: Node) -> None:
    script = """#!/bin/sh
/bin/busybox printf 'first [%s] second [%s] variable [%s]\\n' "$1" "$2" "$VALUE"
"""
    files = {"cmd0": "./script\0two\nlines\0\0", "env0": "VALUE=a\n\nb\0", "workdir": "/work\n"}

    ended = run(tmp_path, kernel, bootstrap(), application(busybox, script, **files))

    assert "first [two\nlines] second [] variable [a\n\nb]\n" in ended.console


def test_arguments_environment_directory_and_user(tmp_path: Path, kernel: Path, busybox: Node) -> None:
    script = r"""#!/bin/sh
PATH=/bin:$PATH
alias b=/bin/busybox
b echo "arguments: [$1] [$2] [$3]"
b echo "environment: $(b env | b grep -v -e ^PWD -e ^SHLVL -e ^PATH | b sort | b tr '\n' ' ')"
b echo "directory: $(b pwd), user: $(b id -u):$(b id -g) $(b id -G)"
b echo "written by name" >/dev/stdout
for mount in /dev /proc /sys /run /tmp /dev/shm /dev/pts /sys/fs/cgroup/pids; do
    b grep -q " $mount " /proc/mounts && b echo "mounted: $mount"
done
b echo "left in the root: $(b ls / | b tr '\n' ' ')"
exit 3
"""
    files = {
        "cmd": "./script\nan argument with blanks\n\nlast",
        "env": "NAME=a value\n\nOTHER=x=y\n",
        "workdir": "/work\n",
        "user": "1000:1001:5,6\n",
    }

    ended = run(tmp_path, kernel, bootstrap(), application(busybox, script, **files))

    assert "arguments: [an argument with blanks] [] [last]\n" in ended.console
    assert "environment: NAME=a value OTHER=x=y \n" in ended.console
    assert "directory: /work, user: 1000:1001 1001 5 6\n" in ended.console
    assert "written by name\n" in ended.console
    for mount in ("/dev", "/proc", "/sys", "/run", "/tmp", "/dev/shm", "/dev/pts", "/sys/fs/cgroup/pids"):  # noqa: S108
        assert f"mounted: {mount}\n" in ended.console
    assert "left in the root: bin dev proc run sys tmp work \n" in ended.console
    assert "init: the application exited with 3\n" in ended.console


def test_the_path_of_the_environment_is_searched(tmp_path: Path, kernel: Path, busybox: Node) -> None:
    second = application(
        busybox, "echo found without an interpreter line", cmd="script", env="PATH=/none:/work"
    )

    ended = run(tmp_path, kernel, bootstrap(), second)

    assert "found without an interpreter line\n" in ended.console
    assert "init: the application exited with 0\n" in ended.console


def test_an_orphan_is_reaped_and_a_signal_is_named(tmp_path: Path, kernel: Path, busybox: Node) -> None:
    script = r"""#!/bin/sh
(/bin/busybox sh -c 'exit 7' & echo $! >/tmp/orphan)
while /bin/busybox test -d /proc/$(/bin/busybox cat /tmp/orphan); do :; done
echo "the orphan is gone"
kill -SEGV $$
"""

    ended = run(tmp_path, kernel, bootstrap(), application(busybox, script, cmd="/work/script"))

    assert "the orphan is gone\n" in ended.console
    assert "init: the application was killed by signal 11\n" in ended.console


def test_one_ramdisk_without_a_root_directory_and_without_a_command(
    tmp_path: Path, kernel: Path, busybox: Node
) -> None:
    shell = Node.file(b"#!/bin/busybox sh\necho the shell of a single ramdisk\n", 0o755)
    programs = {"bin": Node.directory(), "bin/busybox": busybox, "bin/sh": shell}

    ended = run(tmp_path, kernel, {**bootstrap(), **programs})

    assert "init: no command in /cmd: runs sh\n" in ended.console
    assert "the shell of a single ramdisk\n" in ended.console


def test_what_cannot_be_run_is_named(tmp_path: Path, kernel: Path, busybox: Node) -> None:
    ended = run(tmp_path, kernel, bootstrap(), application(busybox, "", cmd="/bin/absent"))

    assert "init: cannot run /bin/absent: ENOENT\n" in ended.console
    assert "init: the application exited with 127\n" in ended.console


def test_a_user_must_be_numbers(tmp_path: Path, kernel: Path, busybox: Node) -> None:
    ended = run(
        tmp_path, kernel, bootstrap(), application(busybox, "", cmd="/work/script", user="1000:wheel")
    )

    assert "init: gives up: /user is not uid:gid[:gid,gid...] in numbers at wheel\n" in ended.console
    assert "init: the application exited with 1\n" in ended.console


def test_a_module_that_is_not_there_is_named(tmp_path: Path, kernel: Path) -> None:
    ended = run(tmp_path, kernel, bootstrap(**{"modules.load": Node.file(b"/modules/absent.ko\n")}))

    message = "init: gives up: /modules.load names a module that is not there: /modules/absent.ko: ENOENT\n"
    assert message in ended.console
    assert ended.code != 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"\x00", "init: gives up: heartbeat: the answer is not 0xB7 from CID 3, port 9000\n"),
        (b"", "init: gives up: heartbeat: closed without an answer by CID 3, port 9000\n"),
    ],
)
def test_a_heartbeat_with_a_wrong_answer(answer: bytes, message: str, tmp_path: Path, kernel: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "vsock_9000"))
        listener.listen()
        listener.settimeout(BOOT_TIMEOUT_S)

        def answer_once() -> None:
            stream, _ = listener.accept()
            with stream:
                assert stream.recv(1) == b"\xb7"
                stream.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        ended = run(tmp_path, kernel, bootstrap())
        thread.join()

    assert message in ended.console
    assert ended.code != 0
