"""Ten enclaves in the background while processes are killed at random: nothing is lost, nothing is left."""

import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("nitro_vmm.cli", reason="there is no `vmm run`; install nitro-vmm")

from nitro_eif import BuildMetadata, Contents, Metadata, write_eif
from nitro_vmm.run.control import stats
from nitro_vmm.run.registry import Entry, alive, directory_of, entries, kill
from nitro_vmm.testing import tiny_kernel

pytestmark = pytest.mark.slow

VMM = [sys.executable, "-P", "-m", "nitro_vmm"]
ENCLAVES = 10
KILLS = 200
END_TIMEOUT_S = 120
METADATA = Metadata(image_name="spin", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00")).pack()


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = tmp_path / "idle.eif"
    # sti; hlt; jmp: an enclave that waits for ever costs no processor time
    contents = Contents(
        kernel=tiny_kernel(bytes.fromhex("fbf4ebfd")), cmdline=b"", ramdisks=[b"r"], metadata=METADATA
    )
    write_eif(contents, path)
    return path


def launch(image: Path, number: int) -> subprocess.Popen[bytes]:
    sockets = ["--vsock-path", str(image.parent / f"vsock{number}")]
    return subprocess.Popen(
        [
            *VMM,
            "run",
            "-d",
            "--console",
            str(image),
            "--memory-mib",
            "64",
            "--boot-timeout-s",
            "3600",
            *sockets,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def exists(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def check_told_truly(known: list[Entry]) -> None:
    for entry in known:
        assert alive(entry) is exists(entry.pid), entry


def wait_for_end(pid: int) -> None:
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        assert select.select([pidfd], [], [], 60)[0]
        os.close(pidfd)


def processes_of(directory: Path) -> list[int]:
    """Processes whose environment names the test's directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.fsencode(directory) in (path / "environ").read_bytes() and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


def test_processes_are_killed_at_random(image: Path) -> None:
    dice = random.Random(42)
    launches: list[subprocess.Popen[bytes]] = []
    launched = killed = 0
    while killed < KILLS:
        launches = [process for process in launches if process.poll() is None]
        running = [entry for entry in entries() if alive(entry)]
        while len(running) + len(launches) < ENCLAVES:
            launches.append(launch(image, launched))
            launched += 1
        # An enclave's process in any state of its life, or the command that launches one.
        victims = [entry.pid for entry in running] + [process.pid for process in launches]
        victim = dice.choice(victims)
        others = {entry.pid for entry in running} - {victim}
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            killed += 1
        for process in launches:
            if process.pid == victim:
                process.wait()
        if victim not in {process.pid for process in launches}:
            wait_for_end(victim)
        known = entries()
        check_told_truly([entry for entry in known if entry.pid == victim or entry.pid in others])
        assert others <= {entry.pid for entry in known if alive(entry)}
        if launches and len(running) < ENCLAVES // 2:
            launches[0].wait()  # let some of them come up, so that grown ones are killed, too

    for process in launches:
        process.wait()
    # One whose launching command was killed goes on, and is known only when it has come up.
    pause, deadline_s = threading.Event(), time.monotonic() + END_TIMEOUT_S
    while left := processes_of(image.parent):
        assert time.monotonic() < deadline_s, left
        for entry in entries():
            if alive(entry):
                kill(entry)
                wait_for_end(entry.pid)
        pause.wait(0.01)
    for entry in entries():
        assert not alive(entry)
    subprocess.run([*VMM, "rm", "--all"], check=True, stdout=subprocess.DEVNULL)
    files = sorted(path.name for path in image.parent.iterdir())
    assert files == ["data", "idle.eif", "nitro-vmm"]
    half_made = [path for path in (image.parent / "nitro-vmm").iterdir() if not path.name.startswith(".")]
    assert half_made == []


CLIENTS = 6
CLIENT_KILLS = 20


@pytest.fixture
def talking_image(image: Path) -> Path:
    """An image that prints for ever."""
    # mov dx,0x3f8; l: mov al,'x'; out dx,al; jmp l
    contents = Contents(
        kernel=tiny_kernel(bytes.fromhex("66baf803b078eeebfb")),
        cmdline=b"",
        ramdisks=[b"r"],
        metadata=METADATA,
    )
    write_eif(contents, image)
    return image


def follow(dice: random.Random, name: str) -> subprocess.Popen[bytes]:
    """A client that has begun to read."""
    command = dice.choice([["logs", "--follow"], ["console"]])
    client = subprocess.Popen(
        [*VMM, *command, name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert client.stdout is not None
    assert client.stdout.read(1) == b"x"
    return client


def descriptors(entry: Entry) -> int:
    return len(list(Path(f"/proc/{entry.pid}/fd").iterdir()))


def test_clients_are_killed_at_random_and_nobody_else_notices(talking_image: Path) -> None:
    dice = random.Random(7)
    for number in range(2):
        assert launch(talking_image, number).wait() == 0
    running = [entry for entry in entries() if alive(entry)]
    before = {entry.name: descriptors(entry) for entry in running}
    clients = [(entry, follow(dice, entry.name)) for entry in running for _ in range(CLIENTS // 2)]

    for _ in range(CLIENT_KILLS):
        entry, victim = clients.pop(dice.randrange(len(clients)))
        victim.kill()
        victim.communicate()
        clients.append((entry, follow(dice, entry.name)))
        assert all(alive(each) for each in running)
        assert all(other.poll() is None for _, other in clients)

    for entry, client in clients:
        assert client.stdout is not None
        assert client.stdout.read(1 << 16) == b"x" * (1 << 16), "who was not killed reads on"
        client.kill()
        client.communicate()
        assert stats(directory_of(entry))["Name"] == entry.name
    pause = threading.Event()
    for entry in running:
        while descriptors(entry) > before[entry.name]:  # the last clients' connections are on their way out
            assert alive(entry)
            pause.wait(0.01)
    subprocess.run([*VMM, "stop", "--all"], check=True, stdout=subprocess.DEVNULL)
    assert [entry for entry in entries() if alive(entry)] == []
