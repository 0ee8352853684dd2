"""A real guest with a vsock device: a machine, a kernel, and guest/vsock_agent.c as its first process.

The agent takes orders over a vsock connection of its own, so a test reads like what it makes the guest do.
"""

import contextlib
import io
import lzma
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

import debian
import images

ROOT = Path(__file__).resolve().parent.parent

CONTROL_PORT = images.AGENT_PORT
ORDER_TIMEOUT_S = 300.0
MEMORY_MIB = 256
KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = ("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport")
"""In the order in which they have to be loaded."""


class Machine(Protocol):
    """A kind of machine, with a kernel that finds its devices."""

    def command(self, directory: Path, cid: int) -> list[str]:
        """How to start it, with its console on standard output."""
        ...


@dataclass(frozen=True)
class Qemu:
    """QEMU, on the daemon."""

    kernel: Path
    initramfs: Path
    options: tuple[str, ...]
    device: str
    # Linux measures whether the timer's interrupts come, and panics if QEMU had no processor meanwhile.
    append: str = "console=ttyS0 quiet panic=-1 no_timer_check"

    def command(self, directory: Path, cid: int) -> list[str]:
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-accel", "tcg", "-no-reboot"),
            *self.options,
            *("-m", f"{MEMORY_MIB}M", "-smp", "1"),
            *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"),
            *("-serial", "stdio"),
            *("-kernel", str(self.kernel), "-initrd", str(self.initramfs), "-append", self.append),
            *("-chardev", f"socket,id=vhost,path={directory}/vhost{cid}"),
            *("-device", f"{self.device},chardev=vhost"),
        ]


@dataclass(frozen=True)
class Vmm:
    """Our own machine: on the daemon, or with vsock in its process."""

    image: Path
    on_daemon: bool

    def command(self, directory: Path, cid: int) -> list[str]:
        vsock = (
            ["--vsock", f"vhost-user:{directory}/vhost{cid}"]
            if self.on_daemon
            else ["--vsock-path", f"{directory}/vsock{cid}", "--cid", str(cid), "--seqpacket"]
        )
        # The agent sends no heartbeat.
        timeout = ["--boot-timeout-s", str(24 * 3600)]
        memory = ["--memory-mib", str(MEMORY_MIB)]
        return images.launch(self.image, *memory, *timeout, *vsock)


def build_agent(directory: Path) -> bytes:
    """The guest's first process, or a skip."""
    try:
        return images.compile_agent(directory)
    except images.ImageError as error:
        pytest.skip(str(error))


def write_initramfs(path: Path, agent: bytes, modules: list[tuple[str, bytes]]) -> Path:
    """An initramfs of the agent and the modules, in this order."""
    path.write_bytes(images.agent_ramdisk(agent, modules))
    return path


def nitro_kernel() -> Path:
    """A kernel like AWS's, or a skip."""
    try:
        return images.nitro_kernel()
    except images.ImageError as error:
        pytest.skip(str(error))


def vmm_image() -> Path:
    """An enclave image of the agent, or a skip."""
    try:
        return images.agent()
    except images.ImageError as error:
        pytest.skip(str(error))


def microvm(directory: Path, *, legacy: bool) -> Qemu:
    """QEMU's microvm, which its nitro-enclave is made of: virtio-mmio, and a kernel like AWS's."""
    return Qemu(
        nitro_kernel(),
        write_initramfs(directory / "microvm.cpio", build_agent(directory), []),
        (
            *("-M", "microvm,acpi=off,memory-backend=memory"),
            *("-global", f"virtio-mmio.force-legacy={'on' if legacy else 'off'}"),
        ),
        "vhost-user-vsock-device",
        append=f"{Qemu.append} reboot=t",
    )


def q35(directory: Path) -> Qemu:
    """An ordinary PC with PCI, and Debian's kernel."""
    try:
        package = debian.DEBIAN.package(KERNEL_PACKAGE)
    except debian.DebianError as error:
        pytest.skip(str(error))
    root = directory / "kernel"
    subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    modules = [
        (f"{name}.ko", lzma.decompress(next(root.rglob(f"{name}.ko.xz")).read_bytes())) for name in MODULES
    ]
    return Qemu(
        next(root.glob("boot/vmlinuz-*")),
        write_initramfs(directory / "q35.cpio", build_agent(directory), modules),
        ("-M", "q35,memory-backend=memory"),
        "vhost-user-vsock-pci",
    )


@dataclass
class Guest:
    """A guest that takes orders."""

    process: subprocess.Popen[bytes]
    directory: Path
    cid: int
    listener: socket.socket
    control: socket.socket = field(init=False)
    _lines: io.TextIOWrapper = field(init=False)

    @property
    def uds_path(self) -> Path:
        return self.directory / f"vsock{self.cid}"

    def wait(self) -> None:
        """Until the agent has connected, for the first time or again.

        Where a daemon was away, the first to connect may be an attempt that the agent has given up meanwhile.
        """
        self.listener.settimeout(ORDER_TIMEOUT_S)
        while True:
            try:
                self.control, _ = self.listener.accept()
            except TimeoutError:
                pytest.fail(f"the guest did not come up:\n{self.log()}{self.console()[-2000:]}")
            self.control.settimeout(ORDER_TIMEOUT_S)
            self._lines = self.control.makefile("r")
            with contextlib.suppress(ConnectionError):
                if self.do("cid") == f"ok {self.cid}":
                    return
            self.close()

    def close(self) -> None:
        """Give the orders' connection up."""
        if hasattr(self, "control"):
            self._lines.close()
            self.control.close()

    def log(self) -> str:
        """What the machine said of itself."""
        return (self.directory / f"machine{self.cid}.log").read_text(errors="replace")

    def console(self) -> str:
        return (self.directory / f"console{self.cid}").read_text(errors="replace")

    def order(self, *words: object) -> None:
        """Tell it to do something."""
        self.control.sendall((" ".join(map(str, words)) + "\n").encode())

    def answer(self) -> str:
        """What came of the last order."""
        try:
            return self._lines.readline().strip()
        except TimeoutError:
            pytest.fail(f"the guest does not answer:\n{self.log()}{self.console()[-2000:]}")

    def do(self, *words: object) -> str:
        self.order(*words)
        return self.answer()

    def listen(self, port: int, *, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """What the guest reaches at a port of the host."""
        listener = socket.socket(socket.AF_UNIX, kind)
        listener.bind(f"{self.uds_path}_{port}")
        listener.listen(2048)
        listener.settimeout(ORDER_TIMEOUT_S)
        return listener

    def connect(self, port: int) -> socket.socket:
        """A connection to a port of the guest."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(ORDER_TIMEOUT_S), 0)
        )
        connection.connect(os.fspath(self.uds_path))
        connection.sendall(f"CONNECT {port}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            byte = connection.recv(1)
            assert byte, "the connection was refused"
            answer += byte
        assert answer.startswith(b"OK ")
        return connection


def daemon_command() -> list[str]:
    """How to start the daemon: this environment's, unless VHOST_USER_VSOCK names another program."""
    other = os.environ.get("VHOST_USER_VSOCK")
    return [other] if other else [sys.executable, "-m", "nitro_vsock.cli"]


@contextlib.contextmanager
def daemon(
    directory: Path, *cids: int, options: tuple[str, ...] = (), more: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon with a guest for each CID; ends with SIGTERM and exit code 0.

    Args:
        directory: Where its sockets and its log are.
        cids: The guests' addresses.
        options: More for the command line.
        more: More for each guest, beginning with a comma.
    """
    vms = [
        f"--vm=guest-cid={cid},socket={directory}/vhost{cid},uds-path={directory}/vsock{cid},connections-max=2048,seqpacket=true{more}"
        for cid in cids
    ]
    with (directory / "daemon.log").open("ab") as log:
        process = subprocess.Popen([*daemon_command(), *vms, *options], stderr=log)
    try:
        wait_for_sockets(process, *(directory / f"vhost{cid}" for cid in cids))
        yield process
        if process.returncode is None:  # the test has not killed it
            process.terminate()
            assert process.wait(30) == 0, (directory / "daemon.log").read_text()
    finally:
        process.kill()
        process.wait()


def wait_for_sockets(process: subprocess.Popen[bytes], *paths: Path) -> None:
    """Until the daemon listens."""
    pause = threading.Event()
    while not all(path.exists() for path in paths):
        assert process.poll() is None, "the daemon ended"
        pause.wait(0.01)


@contextlib.contextmanager
def guest(machine: Machine, directory: Path, cid: int) -> Iterator[Guest]:
    """A guest whose agent has connected."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        control = directory / f"vsock{cid}_{CONTROL_PORT}"
        control.unlink(missing_ok=True)
        listener.bind(os.fspath(control))
        listener.listen(1)
        console = stack.enter_context((directory / f"console{cid}").open("wb"))
        log = stack.enter_context((directory / f"machine{cid}.log").open("wb"))
        command = machine.command(directory, cid)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=log)
        running = Guest(process, directory, cid, listener)
        try:
            running.wait()
            yield running
        finally:
            process.kill()
            process.wait()
            running.close()


def pattern(size: int) -> bytes:
    """Bytes that differ from place to place."""
    block = bytes((i * 131 + (i >> 9)) & 0xFF for i in range(1 << 16))
    return (block * (size // len(block) + 1))[:size]


def describe(data: bytes, times: int = 1) -> str:
    """What a sink of the agent says of this data, repeated."""
    checksum = 0
    for _ in range(times):
        checksum = zlib.crc32(data, checksum)
    return f"{checksum:08x} {len(data) * times}"


def drain(connection: socket.socket) -> str:
    """Read to the end, and say what came as a sink of the agent does."""
    checksum = total = 0
    while chunk := connection.recv(1 << 20):
        checksum = zlib.crc32(chunk, checksum)
        total += len(chunk)
    return f"{checksum:08x} {total}"


@contextlib.contextmanager
def echoing(listener: socket.socket) -> Iterator[None]:
    """A host program that echoes on every connection until its end."""

    def serve(connection: socket.socket) -> None:
        with connection:
            while chunk := connection.recv(65536):
                connection.sendall(chunk)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    listener.settimeout(None)  # or its shutdown would not end `accept`
    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
