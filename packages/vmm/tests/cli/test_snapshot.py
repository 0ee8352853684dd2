"""``vmm snapshot``, ``vmm run --from`` and ``--warm``, with a kernel of a few bytes."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nitro_vmm.accel.unicorn.native import LIBRARY
from nitro_vmm.cache import Cache
from tiny_system import OLD_RANDOM, RETURN_ENOSYS, make_image
from vmm_command import VMM, Vmm, modules_when_the_guest_begins

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="without the native part, programs are not noticed")

# mov dx,0x3f8; mov al,'h'; out dx,al; cli; hlt
NO_PROGRAM = bytes.fromhex("66baf803 b068 ee faf4")
QUICKLY = ("--accel", "unicorn")
PATIENCE_S = 60


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image whose program prints the random bytes that it was given, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_image(tmp_path / "tiny.eif")


@pytest.fixture
def saved(tiny: Path, vmm: Vmm) -> Path:
    """Its machine, saved."""
    path = tiny.with_suffix(".snapshot")
    done = vmm("snapshot", tiny, "-o", path, *QUICKLY)
    assert done.returncode == 0, done.stderr
    return path


def test_enclaves_of_one_saved_machine_differ_in_what_is_random(saved: Path, vmm: Vmm) -> None:
    lives = [vmm("run", "--console", "--from", saved, *QUICKLY) for _ in range(2)]

    printed = [life.stdout for life in lives]
    assert [life.returncode for life in lives] == [0, 0]
    assert len({OLD_RANDOM.decode(), *(text[1:] for text in printed)}) == 3
    assert f"going on from {saved}" in lives[0].stderr


def test_a_saved_machine_is_reported_as_json(tiny: Path, vmm: Vmm, tmp_path: Path) -> None:
    path = tmp_path / "machine"

    report = json.loads(vmm("snapshot", tiny, "-o", path, "--json", *QUICKLY).stdout)
    cached = json.loads(vmm("snapshot", tiny, "--cached", "--json", *QUICKLY).stdout)

    assert report == {"File": str(path), "Kind": "image", "Bytes": path.stat().st_size}
    assert Path(cached["File"]).stat().st_size == cached["Bytes"]


def test_the_console_begins_where_the_kernel_began(tiny: Path, vmm: Vmm) -> None:
    path = tiny.with_suffix(".snapshot")
    vmm("snapshot", tiny, "-o", path, *QUICKLY)

    # In binary, because what is random need not be text.
    done = subprocess.run(
        [*VMM, "run", "--console", "--from", path, "--quiet", *QUICKLY], capture_output=True, check=False
    )

    assert done.stdout[:1] == b"k"
    assert len(done.stdout) == 1 + len(OLD_RANDOM)


def test_measurements_are_the_images_and_the_name_is_new(saved: Path, tiny: Path, vmm: Vmm) -> None:
    booted, *others = (
        json.loads(vmm("run", *image, "--json", *QUICKLY).stdout)
        for image in ((tiny,), ("--from", saved), (tiny, "--from", saved))
    )

    for other in others:
        assert other["Measurements"] == booted["Measurements"]
    assert len({booted["EnclaveID"], *(other["EnclaveID"] for other in others)}) == 3


def test_another_image_or_machine_does_not_go_on_from_it(saved: Path, tiny: Path, vmm: Vmm) -> None:
    other = make_image(tiny.with_name("other.eif"), RETURN_ENOSYS)

    for arguments, message in (
        ((other,), "it has another kernel"),
        ((tiny, "--memory-mib", "300"), "another size of memory"),
        (("--memory-mib", "300"), "512 MiB, not 300"),
        ((tiny, "--cmdline-append", "more"), "another command line"),
        ((tiny, "--seqpacket"), "other devices"),
    ):
        done = vmm("run", *arguments, "--from", saved, *QUICKLY)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "hint:" in done.stderr


def test_its_guest_runs_before_the_slow_imports(saved: Path) -> None:
    loaded = modules_when_the_guest_begins("run", "--quiet", "--from", saved)

    assert "nitro_vmm.snapshot.store" in loaded
    assert not loaded & {"trio", "pydantic", "cryptography"}


def test_what_is_wrong_elsewhere_is_told_as_without_a_saved_machine(
    saved: Path, vmm: Vmm, tmp_path: Path
) -> None:
    (tmp_path / "vsock").touch()

    done = vmm("run", "--console", "--from", saved, "--vsock-path", tmp_path / "vsock", *QUICKLY)

    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert "exists and is not a socket" in done.stderr


def test_a_damaged_or_missing_file_is_told(saved: Path, vmm: Vmm) -> None:
    content = bytearray(saved.read_bytes())
    content[-100] ^= 1
    saved.write_bytes(content)

    damaged = vmm("run", "--from", saved, *QUICKLY)
    missing = vmm("run", "--from", saved.with_name("missing"), *QUICKLY)
    os.mkfifo(saved.with_name("pipe"))
    pipe = vmm("run", "--from", saved.with_name("pipe"), *QUICKLY)

    assert "damaged" in damaged.stderr
    assert damaged.returncode == 4
    assert "vmm snapshot makes one" in missing.stderr
    assert missing.returncode == 2
    assert "a device or a pipe" in pipe.stderr
    assert pipe.returncode == 4


@pytest.mark.parametrize(
    ("handler", "code", "message"),
    [
        (RETURN_ENOSYS, None, "does not make a device node (error 38)"),
        (b"", NO_PROGRAM, "halted for good before"),
    ],
)
def test_a_guest_that_cannot_be_saved_is_told(
    tiny: Path, vmm: Vmm, handler: bytes, code: bytes | None, message: str
) -> None:
    image = make_image(tiny, handler) if code is None else make_image(tiny, code=code)

    done = vmm("snapshot", image, "-o", tiny.with_name("saved"), *QUICKLY)

    assert message in done.stderr
    assert done.returncode == 4
    assert sorted(path.name for path in tiny.parent.glob("*saved*")) == []


def test_a_saved_machine_of_the_cache_is_used_and_a_damaged_one_is_not(tiny: Path, vmm: Vmm) -> None:
    cold = vmm("run", tiny, "--warm", "image", *QUICKLY)
    made = vmm("snapshot", tiny, "--cached", *QUICKLY)
    not_made = vmm("snapshot", tiny, "--cached", *QUICKLY)
    warm = vmm("run", tiny, "--warm", "image", *QUICKLY)
    (entry,) = Cache().entries()
    path = Cache().directory / entry.name
    path.write_bytes(path.read_bytes()[:-1])
    again = vmm("run", tiny, "--warm", "image", *QUICKLY)

    assert "booting" in cold.stderr
    assert f"saved {path}" in made.stderr
    assert f"the cache has {entry.name}" in not_made.stderr
    assert f"going on from {path}" in warm.stderr
    assert "booting" in again.stderr
    assert again.returncode == 0
    assert Cache().entries() == []


def test_what_cannot_be_saved_is_noted_once(tiny: Path, vmm: Vmm) -> None:
    image = make_image(tiny, RETURN_ENOSYS)

    vmm("snapshot", image, "--cached", *QUICKLY)

    assert [entry.kind for entry in Cache().entries()] == ["refused"]


def test_two_processes_may_make_the_same_at_once(tiny: Path) -> None:
    command = [*VMM, "snapshot", str(tiny), "--cached", *QUICKLY]
    makers = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    codes = [maker.wait(PATIENCE_S) for maker in makers]

    assert codes == [0, 0]
    assert [entry.kind for entry in Cache().entries()] == ["image"]


def test_a_maker_that_is_killed_leaves_nothing_that_is_used(tiny: Path, vmm: Vmm) -> None:
    directory = Cache().directory
    with subprocess.Popen([*VMM, "snapshot", tiny, "--cached", *QUICKLY], stderr=subprocess.DEVNULL) as maker:
        until = time.monotonic() + PATIENCE_S
        while not list(directory.glob(".new-*")) and maker.poll() is None and time.monotonic() < until:
            os.sched_yield()
        maker.send_signal(signal.SIGKILL)

    done = vmm("run", tiny, "--warm", "image", *QUICKLY)
    made = vmm("snapshot", tiny, "--cached", *QUICKLY)

    assert done.returncode == 0
    assert made.returncode == 0
    assert [path.name.partition("-")[0] for path in directory.iterdir()] == ["image"]
