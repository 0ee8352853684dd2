"""How enclaves end, and what `vmm run` says of it: by themselves, by signals, and before they begin."""

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import images
from kvm_host import SLOWER
from nitro_eif import BuildMetadata, Contents, Metadata, Node, write_cpio, write_eif
from nitro_vmm.testing import tiny_kernel

ROOT = Path(__file__).resolve().parent.parent

CMDLINE = b"reboot=k panic=1 console=ttyS0 quiet"
END_TIMEOUT_S = 60 * SLOWER
STOP_TIMEOUT_S = 10 * SLOWER
READY = b"ready"

# Kernels of a few bytes. Each first says on COM1 that it runs: mov dx,0x3f8, and for each byte mov al,BYTE
# and out dx,al.
SAY_READY = bytes.fromhex("66baf803") + b"".join(bytes([0xB0, byte, 0xEE]) for byte in READY)
CLI_LOOP = bytes.fromhex("faebfe")  # cli; jmp $
CLI_HALT = bytes.fromhex("faf4")  # cli; hlt
# xor eax,eax; push rax; push rax; lidt [rsp]; ud2
TRIPLE_FAULT = bytes.fromhex("31c05050 0f011c24 0f0b")
# mov eax,0x7ffff000; jmp rax: there is no memory
INTO_NOTHING = bytes.fromhex("b800f0ff7f ffe0")

MOUNT_CONSOLE = """
    syscall(SYS_mkdir, "/dev", 0755);
    syscall(SYS_mount, "dev", "/dev", "devtmpfs", 0, 0);
    long console = syscall(SYS_open, "/dev/console", O_WRONLY);
    syscall(SYS_write, console, "ready\\n", 6);
"""
SPIN = "for (;;);"
SLEEP = "for (long forever[2] = {1 << 30, 0};;) syscall(SYS_nanosleep, forever, 0);"


def reboot(command: int) -> str:
    """reboot(2): LINUX_REBOOT_MAGIC1 and 2 come before the command."""
    return f"syscall(SYS_reboot, 0xfee1dead, 672274793, {command:#x}); {SPIN}"


POWER_OFF = reboot(0x4321_FEDC)
HALT = reboot(0xCDEF_0123)
RESTART = reboot(0x0123_4567)


@dataclass(frozen=True)
class Ended:
    """What ``vmm run`` left behind."""

    code: int
    console: str
    said: str


def write_image(path: Path, kernel: bytes, *ramdisks: bytes) -> Path:
    metadata = Metadata(image_name="test", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00"))
    contents = Contents(
        kernel=kernel, cmdline=CMDLINE, ramdisks=list(ramdisks) or [bytes(512)], metadata=metadata.pack()
    )
    write_eif(contents, path)
    return path


def tiny_image(directory: Path, code: bytes) -> Path:
    return write_image(directory / "tiny.eif", tiny_kernel(SAY_READY + code))


@pytest.fixture(scope="module")
def kernel() -> bytes:
    try:
        return images.nitro_kernel().read_bytes()
    except images.ImageError as error:
        pytest.skip(str(error))


def linux_image(directory: Path, kernel: bytes, body: str) -> Path:
    """An image whose init is this C."""
    source, program = directory / "init.c", directory / "init"
    source.write_text(f'#include "linux.h"\nstatic int main(void) {{ {MOUNT_CONSOLE} {body}\nreturn 0; }}\n')
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler; Debian's package is gcc")
    images.compile_program(source, program)
    ramdisk = directory / "init.cpio"
    with ramdisk.open("wb") as archive:
        write_cpio(archive, {"init": Node.file(program.read_bytes(), 0o755)}.items())
    return write_image(directory / "linux.eif", kernel, ramdisk.read_bytes())


def run(image: Path, *options: str) -> Ended:
    """Run an image to its end, and see that nothing is left behind."""
    before = sorted(image.parent.iterdir())
    scratch = image.parent / "scratch"
    scratch.mkdir()
    command = images.launch(image, *options)
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=END_TIMEOUT_S,
        check=False,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    ended = Ended(
        done.returncode, done.stdout.decode(errors="replace").replace("\r", ""), done.stderr.decode()
    )
    print(ended.console, ended.said, sep="\n")
    assert list(scratch.iterdir()) == []
    scratch.rmdir()
    assert sorted(image.parent.iterdir()) == before
    assert "Traceback" not in ended.said
    return ended


# By themselves.


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        pytest.param(POWER_OFF, 0, "the enclave ", id="power off"),
        pytest.param(HALT, 0, "the enclave halted for good", id="halt"),
        pytest.param(RESTART, 0, "the enclave rebooted", id="reboot"),
        pytest.param(
            "return 3;",
            10,
            "the enclave's kernel panicked: Attempted to kill init! exitcode=0x00000300",
            id="init ends",
        ),
        pytest.param(
            "*(volatile int *)0 = 0;",
            10,
            "the enclave's kernel panicked: Attempted to kill init! exitcode=0x0000000b",
            id="init crashes",
        ),
    ],
)
def test_linux_ends_by_itself(tmp_path: Path, kernel: bytes, body: str, code: int, said: str) -> None:
    ended = run(linux_image(tmp_path, kernel, body), "--vsock-path", str(tmp_path / "vsock"))

    assert ended.code == code
    assert said in ended.said
    assert "ready\n" in ended.console


def linux_image_with(directory: Path, kernel: bytes, init: Node | None) -> Path:
    ramdisk = directory / "init.cpio"
    with ramdisk.open("wb") as archive:
        write_cpio(archive, ([] if init is None else {"init": init}.items()))
    return write_image(directory / "linux.eif", kernel, ramdisk.read_bytes())


@pytest.mark.parametrize(
    ("init", "cause"),
    [
        pytest.param(None, "(B07)", id="no init"),
        pytest.param(Node.file(b"#!/bin/sh\n", 0o755), "(B02)", id="no interpreter"),
        pytest.param(Node.file(b"\x7fELF nonsense", 0o755), "(B03)", id="no program"),
        pytest.param(Node.file(b"#!/init\n", 0o644), "(B04)", id="not executable"),
    ],
)
def test_why_linux_does_not_start(tmp_path: Path, kernel: bytes, init: Node | None, cause: str) -> None:
    ended = run(linux_image_with(tmp_path, kernel, init))

    assert ended.code == 10
    assert cause in ended.said
    assert "  hint: " in ended.said


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        pytest.param(CLI_HALT, 0, "the enclave halted for good", id="hlt without interrupts"),
        pytest.param(TRIPLE_FAULT, 11, "the enclave crashed with a triple fault", id="triple fault"),
        pytest.param(INTO_NOTHING, 11, "the enclave crashed", id="code outside memory"),
    ],
)
def test_a_tiny_kernel_ends_by_itself(tmp_path: Path, code: bytes, exit_code: int, said: str) -> None:
    ended = run(tiny_image(tmp_path, code))

    assert (ended.code, ended.console) == (exit_code, "ready")
    assert said in ended.said


@pytest.mark.parametrize("body", [pytest.param(SPIN, id="busy"), pytest.param(SLEEP, id="idle")])
def test_no_heartbeat_in_time(tmp_path: Path, kernel: bytes, body: str) -> None:
    ended = run(linux_image(tmp_path, kernel, body), "--boot-timeout-s", "5")

    assert ended.code == 5
    assert "no heartbeat within 5 s" in ended.said


def test_no_heartbeat_of_a_kernel_without_interrupts(tmp_path: Path) -> None:
    ended = run(tiny_image(tmp_path, CLI_LOOP), "--boot-timeout-s", "1")

    assert ended.code == 5


def test_the_end_as_json(tmp_path: Path) -> None:
    ended = run(tiny_image(tmp_path, TRIPLE_FAULT), "--json", "--quiet", "--memory-mib", "64")

    report = json.loads(ended.console)
    assert (report["ExitCode"], report["Outcome"]) == (11, "CRASH")
    assert report["Reason"] == "the enclave crashed with a triple fault"
    assert (report["HeartbeatSeconds"], report["MemoryMiB"], report["EnclaveCID"]) == (None, 64, 16)
    assert len(report["Measurements"]["PCR0"]) == 96
    assert ended.said == READY.decode()


# By signals.


def end_by_signal(image: Path, number: signal.Signals) -> Ended:
    """Run until the guest says that it is ready; then send the signal."""
    command = images.launch(image, "--vsock-path", str(image.parent / "vsock"))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        console = b""
        while READY not in console:
            assert select.select([process.stdout], [], [], END_TIMEOUT_S)[0], console
            piece = os.read(process.stdout.fileno(), 4096)
            assert piece, "the guest has ended"
            console += piece
        process.send_signal(number)
        rest, said = process.communicate(timeout=STOP_TIMEOUT_S)
    finally:
        process.kill()
        process.communicate()
    assert not list(image.parent.glob("vsock*"))
    return Ended(process.returncode, (console + rest).decode(errors="replace"), said.decode())


SIGNALS = pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, id="SIGINT"), pytest.param(signal.SIGTERM, 143, id="SIGTERM")],
)


@SIGNALS
@pytest.mark.parametrize("body", [pytest.param(SPIN, id="busy"), pytest.param(SLEEP, id="idle")])
def test_a_signal_ends_linux(
    tmp_path: Path, kernel: bytes, body: str, number: signal.Signals, code: int
) -> None:
    ended = end_by_signal(linux_image(tmp_path, kernel, body), number)

    assert ended.code == code
    assert "Traceback" not in ended.said


@SIGNALS
def test_a_signal_ends_a_kernel_that_takes_no_interrupts(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    ended = end_by_signal(tiny_image(tmp_path, CLI_LOOP), number)

    assert ended.code == code
    assert "Traceback" not in ended.said


# Before they begin.


def small_image(directory: Path) -> Path:
    return tiny_image(directory, CLI_HALT)


def check_refusal(ended: Ended, code: int, *words: str) -> None:
    assert (ended.code, ended.console) == (code, "")
    for word in words:
        assert word in ended.said
    assert "hint: " in ended.said or "--memory-mib" in ended.said


def test_a_missing_file(tmp_path: Path) -> None:
    check_refusal(run(tmp_path / "absent.eif"), 3, "absent.eif: No such file or directory")


def test_a_directory(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()

    check_refusal(run(tmp_path / "directory"), 3, "directory: ", "Is a directory")


@pytest.mark.parametrize("length", [0, 4, 100, 548, 700])
def test_a_truncated_file(tmp_path: Path, length: int) -> None:
    image = small_image(tmp_path)
    os.truncate(image, length)

    check_refusal(run(image), 3, "tiny.eif")


def test_a_corrupt_file(tmp_path: Path) -> None:
    image = small_image(tmp_path)
    data = bytearray(image.read_bytes())
    data[data.index(SAY_READY)] ^= 1
    image.write_bytes(data)

    check_refusal(run(image), 3, "tiny.eif: Nitro would not boot it: checksum")


def test_another_kind_of_file(tmp_path: Path) -> None:
    image = tmp_path / "picture.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(10_000))

    check_refusal(run(image), 3, "picture.png")


def test_a_kernel_that_is_none(tmp_path: Path) -> None:
    image = write_image(tmp_path / "text.eif", b"this is no kernel at all" * 100)

    check_refusal(run(image), 3, "text.eif", "neither a bzImage", "ELF")


def test_a_kernel_of_an_unknown_compression(tmp_path: Path, kernel: bytes) -> None:
    sectors, (start,) = kernel[0x1F1] or 4, struct.unpack_from("<I", kernel, 0x248)
    payload = (1 + sectors) * 512 + start
    image = write_image(tmp_path / "odd.eif", kernel[:payload] + b"ODDSTUFF" + kernel[payload + 8 :])

    check_refusal(run(image), 3, "odd.eif", "none of the compressions known here")


def test_ramdisks_that_do_not_fit_behind_the_kernel(tmp_path: Path) -> None:
    kernel = tiny_kernel(CLI_HALT, memory_bytes=60 << 20)
    image = write_image(tmp_path / "full.eif", kernel, bytes(8 << 20))

    check_refusal(run(image, "--memory-mib", "64"), 3, "full.eif", "ramdisk 1", "--memory-mib")


def test_less_memory_than_the_image_needs(tmp_path: Path) -> None:
    image = write_image(tmp_path / "big.eif", tiny_kernel(CLI_HALT), bytes(20 << 20))

    check_refusal(run(image, "--memory-mib", "64"), 2, "big.eif", "hint: --memory-mib 81")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(["--memory-mib", "63"], ["--memory-mib 63", "64"], id="little memory"),
        pytest.param(["--cid", "3"], ["--cid 3", "4"], id="the parent's CID"),
        pytest.param(["--cid", "4294967295"], ["--cid 4294967295"], id="any CID"),
        pytest.param(["--boot-timeout-s", "0"], ["--boot-timeout-s 0"], id="no time"),
        pytest.param(["--boot-timeout-s", "nan"], ["--boot-timeout-s nan"], id="time is no number"),
        pytest.param(["--instance-id", "x"], ["--instance-id x"], id="instance"),
    ],
)
def test_options_out_of_range(tmp_path: Path, options: Sequence[str], words: Sequence[str]) -> None:
    check_refusal(run(small_image(tmp_path), *options), 2, *words)


def test_a_cid_that_is_no_number(tmp_path: Path) -> None:
    ended = run(small_image(tmp_path), "--cid", "sixteen")

    assert ended.code == 2
    assert "--cid" in ended.said
    assert "sixteen" in ended.said


def test_a_socket_in_use(tmp_path: Path) -> None:
    image, path = small_image(tmp_path), tmp_path / "vsock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        ended = run(image, "--vsock-path", str(path))

    check_refusal(ended, 4, str(path), "is in use")


def test_a_vsock_path_in_no_directory(tmp_path: Path) -> None:
    ended = run(small_image(tmp_path), "--vsock-path", str(tmp_path / "absent" / "vsock"))

    check_refusal(ended, 4, str(tmp_path / "absent" / "vsock"))


def test_no_vhost_user_daemon(tmp_path: Path) -> None:
    ended = run(small_image(tmp_path), "--vsock", f"vhost-user:{tmp_path / 'absent'}")

    check_refusal(ended, 4, str(tmp_path / "absent"), "start the daemon first")
