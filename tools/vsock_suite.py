"""Run the Linux kernel's own vsock tests between two guests of the daemon: ``python tools/vsock_suite.py``.

The tests are tools/testing/vsock of the kernel's sources. Two QEMU guests with the same kernel are siblings
in one daemon. A test has a server in one guest and a client in the other. They keep in step over TCP, which
QEMU's user-mode network carries: the server's port is forwarded to this machine, which the client reaches as
10.0.2.2.

Each guest runs a shell on its serial console, and this program types in it. Programs and kernels are kept in
``.cache``.
"""

import argparse
import contextlib
import io
import lzma
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from debian import Apt, DebianError, say
from nitro_eif import Node, write_cpio

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
CIDS = (4, 5)
CONTROL_PORT = 1234
MEMORY_MIB = 256
BOOT_TIMEOUT_S = 120.0
PROGRAM_TIMEOUT_S = 120.0

APPEND = "console=ttyS0 quiet panic=-1 no_timer_check random.trust_cpu=on"
"""Without ``no_timer_check`` a kernel on a busy machine takes its timer for broken."""

MODULES = (
    *("virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("failover", "net_failover", "virtio_net"),
    *("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport", "vsock_diag"),
)
"""In the order in which they are loaded. A kernel that has one of them built in has no file for it."""

COMMANDS = ("sh", "insmod", "ifconfig", "route", "stty", "mount", "poweroff", "echo", "cat")
INIT = """\
#!/bin/sh
mount -t devtmpfs none /dev
mount -t proc none /proc
for module in /modules/*.ko; do insmod $module || echo "suite: cannot load $module"; done
ifconfig lo 127.0.0.1
ifconfig eth0 10.0.2.15 netmask 255.255.255.0
route add default gw 10.0.2.2
stty -echo
echo "suite: ready"
while read line; do
    sh -c "$line"
    echo "suite: exit $?"
done
poweroff -f
"""

PAIRS = ("vsock_test", "vsock_diag_test", "vsock_uring_test")
"""Programs that run in both guests and keep in step."""

RESULT = re.compile(r"^(\d+) - (.*?)\.\.\.((?:(?!^\d+ - ).)*?)(ok|skipped)$", re.MULTILINE | re.DOTALL)
"""Number, name, what the program says of the test (often nothing), and its end."""
STARTED = re.compile(r"^(\d+) - (.*?)\.\.\.", re.MULTILINE)


class SuiteError(Exception):
    """The suite cannot be run here; the message says why."""


def unpacked(package: Path) -> Path:
    """The files of a package, unpacked beside it."""
    root = package.parent / "root"
    if not root.is_dir():
        unfinished = package.parent / "root.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        subprocess.run(["dpkg-deb", "-x", package, unfinished], check=True)
        unfinished.rename(root)
    return root


@dataclass(frozen=True)
class Release:
    """The newest kernel of a Debian suite."""

    suite: str

    def apt(self) -> Apt:
        """Debian's packages of the suite."""
        return Apt(CACHE / "debian" / self.suite, suite=self.suite)

    def source(self) -> str:
        """The package of its sources.

        Raises:
            DebianError: The suite's index cannot be fetched.
        """
        return next(
            name for name in self.apt().requirements("linux-source") if re.match(r"linux-source-\d", name)
        )

    def kernel_files(self) -> list[Path]:
        """Folders with the files of the kernel and of its modules.

        Newer kernels are split: a package without files depends on one with the kernel and one with the
        modules.

        Raises:
            DebianError: They cannot be fetched.
        """
        apt = self.apt()
        whole = unpacked(apt.package(KERNEL))
        if any(whole.rglob("vmlinuz*")):
            return [whole]
        image = next(name for name in apt.requirements(KERNEL) if re.match(r"linux-image-\d", name))
        parts = [
            name for name in apt.requirements(image) if re.match(r"linux-(binary|modules|image)-\d", name)
        ]
        return [unpacked(apt.package(name)) for name in parts]


RELEASES = {"stable": Release("trixie"), "unstable": Release("sid")}
KERNEL = "linux-image-cloud-amd64"


def sources(release: Release) -> Path:
    """The folder of the tests, with the headers beside it that they are compiled with.

    Raises:
        DebianError: The sources cannot be fetched.
    """
    package = release.apt().package(release.source())
    place = CACHE / "vsock-suite" / package.stem
    if not place.is_dir():
        archive = next(unpacked(package).rglob("linux-source-*.tar.xz"))
        say(f"unpacking the tests of {archive.name}")
        unfinished = place.with_name(f"{place.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        wanted = re.compile(r"^[^/]+/tools/(testing/vsock|include)/")
        with tarfile.open(archive) as tar:
            members = (member for member in tar if wanted.match(member.name))
            tar.extractall(unfinished, members, filter="data")
        unfinished.rename(place)
    return next(place.glob("*/tools/testing/vsock"))


def programs(release: Release) -> dict[str, bytes]:
    """The test programs, compiled statically. The one for io_uring is left out where its library is missing.

    Raises:
        DebianError: The sources cannot be fetched.
        SuiteError: There is no C compiler, or it fails.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SuiteError("no C compiler for the kernel's tests: install gcc")
    folder = sources(release)
    headers = unpacked(release.apt().package("linux-libc-dev")) / "usr/include"
    uring = unpacked(release.apt().package("liburing-dev")) / "usr"
    library = next(uring.rglob("liburing.a")).parent
    flags = f"-O2 -D_GNU_SOURCE -Wno-pointer-sign -I. -I../../include -I{uring}/include"
    flags += "".join(
        f" -idirafter {each}" for each in (headers, next(headers.glob("x86_64-linux-gnu"), headers))
    )
    found = {}
    for name in ("vsock_test", "vsock_diag_test", "vsock_perf", "vsock_uring_test"):
        make = [
            "make",
            "-C",
            str(folder),
            f"CC={compiler}",
            f"CFLAGS={flags}",
            f"LDFLAGS=-static -L{library}",
        ]
        done = subprocess.run([*make, name], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found[name] = (folder / name).read_bytes()
        elif name == "vsock_uring_test":
            say(f"{name} is left out, because it does not compile here:\n{done.stderr[-500:]}")
        else:
            raise SuiteError(f"{name} does not compile:\n{done.stderr}")
    return found


def guest_files(release: Release, built: Mapping[str, bytes], directory: Path) -> tuple[Path, Path]:
    """The kernel, and an initramfs with the programs.

    Raises:
        DebianError: A package cannot be fetched.
    """
    roots = release.kernel_files()
    kernel = next(path for root in roots for path in root.rglob("vmlinuz*"))
    busybox = unpacked(Apt(CACHE / "debian" / "trixie").package("busybox-static"))
    files = {
        "init": Node.file(INIT.encode(), 0o755),
        **{name: Node.directory() for name in ("bin", "dev", "proc", "modules")},
        "bin/busybox": Node.file(next(busybox.rglob("bin/busybox")).read_bytes(), 0o755),
        **{f"bin/{name}": Node.symlink("busybox") for name in COMMANDS},
        **{f"bin/{name}": Node.file(content, 0o755) for name, content in built.items()},
    }
    for number, name in enumerate(MODULES):
        module = next((path for root in roots for path in root.rglob(f"{name}.ko.xz")), None)
        if module is not None:
            content = lzma.decompress(module.read_bytes())
            files[f"modules/{number:02}-{name}.ko"] = Node.file(content)
    archive = io.BytesIO()
    write_cpio(archive, files.items())
    initramfs = directory / "initramfs"
    initramfs.write_bytes(archive.getvalue())
    return kernel, initramfs


class Guest:
    """A guest with a shell on its serial console.

    Args:
        cid: Its vsock address.
        control_port: The port of this machine that leads to its control port.
        command: How to start it.
    """

    def __init__(self, cid: int, control_port: int, command: list[str]) -> None:
        self.cid = cid
        self.control_port = control_port
        self.lines: list[str] = []
        """What its console has said so far."""
        keyboard, self._input = os.pipe()
        self._output, screen = os.pipe()
        self._process = subprocess.Popen(command, stdin=keyboard, stdout=screen)
        os.close(keyboard)
        os.close(screen)
        self._unread = b""

    def until(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Read the console up to a line that has the pattern in it.

        Raises:
            SuiteError: It does not come.
        """
        end = time.monotonic() + timeout_s
        while True:
            while b"\n" in self._unread:
                raw, _, self._unread = self._unread.partition(b"\n")
                line = raw.decode(errors="replace").rstrip()
                self.lines.append(line)
                if found := re.search(pattern, line):
                    return found
            ready, _, _ = select.select([self._output], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._output, 65536) if ready else b""
            if not piece:
                break
            self._unread += piece
        tail = "\n".join([*self.lines[-30:], self._unread.decode(errors="replace")])
        raise SuiteError(f"guest {self.cid} does not say {pattern!r}; it says:\n{tail}")

    def start(self, command: str) -> None:
        """Type a command."""
        os.write(self._input, f"{command}\n".encode())

    def finish(self) -> int:
        """Wait for the command's end; returns its exit code."""
        return int(self.until(r"^suite: exit (\d+)", PROGRAM_TIMEOUT_S)[1])

    def close(self) -> None:
        """Switch it off."""
        self._process.kill()
        self._process.wait()
        os.close(self._input)
        os.close(self._output)


CONTROL_DELAY_S = 0.02
"""How long the control connection holds back what it carries.

Several tests expect that what one guest did on vsock has arrived by the time that the other hears of it over
TCP. On a busy machine, where a daemon has to be woken for the one and not for the other, that would be a
matter of luck.
"""


class Relay:
    """Carries control connections, one after the other, to the server's guest, and slowly.

    Args:
        target: The port of this machine that is forwarded to the guest.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        """Where the client's guest connects."""
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(CONTROL_DELAY_S)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def free_port() -> int:
    """A TCP port of this machine that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def guests(kernel: Path, initramfs: Path, directory: Path) -> Iterator[tuple[Guest, Guest]]:
    """The daemon and two guests.

    Raises:
        SuiteError: One of them does not start.
    """
    sockets = {cid: directory / f"vhost{cid}" for cid in CIDS}
    vms = [f"--vm=guest-cid={cid},socket={path},groups=suite,seqpacket=true" for cid, path in sockets.items()]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((directory / "daemon.log").open("wb"))
        daemon = stack.enter_context(
            subprocess.Popen([sys.executable, "-m", "nitro_vsock.cli", *vms], stderr=log)
        )
        stack.callback(daemon.terminate)
        while not all(path.exists() for path in sockets.values()):
            if daemon.poll() is not None:
                raise SuiteError(f"the daemon does not start: {(directory / 'daemon.log').read_text()}")
            time.sleep(0.05)
        pair = []
        for cid, path in sockets.items():
            relay = Relay(free_port())
            stack.callback(relay.close)
            qemu = [
                *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                *("-M", "q35,memory-backend=memory", "-accel", "tcg", "-m", f"{MEMORY_MIB}M", "-smp", "1"),
                *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"),
                *("-kernel", str(kernel), "-initrd", str(initramfs), "-append", APPEND, "-serial", "stdio"),
                *(
                    "-chardev",
                    f"socket,id=vhost,path={path}",
                    "-device",
                    "vhost-user-vsock-pci,chardev=vhost",
                ),
                *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{relay.target}-:{CONTROL_PORT}"),
                *("-device", "virtio-net-pci,netdev=net,romfile="),
            ]
            guest = Guest(cid, relay.port, qemu)
            stack.callback(guest.close)
            pair.append(guest)
        for guest in pair:
            guest.until(r"^suite: ready", BOOT_TIMEOUT_S)
        yield pair[0], pair[1]


def run_pair(program: str, server: Guest, client: Guest) -> list[str]:
    """Run one program in both guests; returns what went wrong.

    Raises:
        SuiteError: A guest hangs.
    """
    begin = len(client.lines)
    server.start(f"{program} --mode=server --control-port={CONTROL_PORT} --peer-cid={client.cid}")
    server.until(r"Control socket listening", PROGRAM_TIMEOUT_S)
    client.start(
        f"{program} --mode=client --control-host=10.0.2.2 --control-port={server.control_port}"
        f" --peer-cid={server.cid}"
    )
    codes = {"client": client.finish(), "server": server.finish()}
    said = "\n".join(client.lines[begin:])
    results = {found[1]: found for found in RESULT.finditer(said)}
    started = list(STARTED.finditer(said))
    passed = [found for found in results.values() if found[4] == "ok"]
    print(f"  {program}, server in guest {server.cid}: {len(passed)} of {len(started)} ok", flush=True)
    for found in results.values():
        if found[3].strip():
            print(f"    {found[1]} ({found[2]}): {' '.join(found[3].split())}", flush=True)
    wrong = [
        f"{program} {each[1]} ({each[2]}) did not end with ok"
        for each in started
        if each[1] not in results or results[each[1]][4] != "ok"
    ]
    wrong += [f"{program}: exit code {code} in the {name}" for name, code in codes.items() if code]
    if wrong:
        wrong += [f"    guest {guest.cid}: {line}" for guest in (client, server) for line in guest.lines[-4:]]
    return wrong if started else [f"{program}: no results", *client.lines[begin:]]


def run_perf(server: Guest, client: Guest) -> list[str]:
    """Run the kernel's benchmark once; returns what went wrong. Its figures are printed.

    Raises:
        SuiteError: A guest hangs.
    """
    server.start("vsock_perf --port 5000")
    server.until(r"Run as receiver|Waiting|Listening|Listen port", PROGRAM_TIMEOUT_S)
    client.start(f"vsock_perf --sender {server.cid} --port 5000 --bytes 64M")
    codes = [client.finish(), server.finish()]
    for guest in (client, server):
        for line in guest.lines[-12:]:
            if "Gbits/s" in line:
                print(f"  vsock_perf, guest {guest.cid}: {line.strip()}", flush=True)
    return [] if codes == [0, 0] else [f"vsock_perf: exit codes {codes}"]


def run_release(name: str) -> list[str]:
    """Run all programs of one kernel, both ways; returns what went wrong.

    Raises:
        DebianError: A package cannot be fetched.
        SuiteError: Something cannot be compiled or started, or hangs.
    """
    wrong = []
    with TemporaryDirectory(prefix="vsock-suite-") as scratch:
        directory = Path(scratch)
        built = programs(RELEASES[name])
        kernel, initramfs = guest_files(RELEASES[name], built, directory)
        began = time.monotonic()
        print(f"{RELEASES[name].source()}:", flush=True)
        with guests(kernel, initramfs, directory) as (one, other):
            for server, client in ((one, other), (other, one)):
                for program in PAIRS:
                    if program in built:
                        wrong += run_pair(program, server, client)
                wrong += run_perf(server, client)
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
    return wrong


def main() -> int:
    """Run the suites; the exit code is 1 if a test fails, 4 if they cannot be run here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help=f"some of {', '.join(RELEASES)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.releases) - RELEASES.keys():
        parser.error(f"no such release: {', '.join(sorted(unknown))}")
    if shutil.which("qemu-system-x86_64") is None:
        say("error: no qemu-system-x86_64; Debian's package is qemu-system-x86")
        return 4
    wrong = []
    for name in arguments.releases or RELEASES:
        try:
            wrong += run_release(name)
        except (DebianError, SuiteError) as error:
            say(f"error: {error}")
            return 4
    for each in wrong:
        say(each)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
