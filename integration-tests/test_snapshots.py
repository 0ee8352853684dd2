"""Enclaves with real kernels go on from saved machines: they share no secret, and their clocks are right."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("nitro_vmm.cli", reason="there is no `vmm run`; install nitro-vmm")

import images
from nitro_vmm import EnclaveConfig
from nitro_vmm.accel.unicorn.native import LIBRARY
from second_lives import SecondLife, build, together

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LIBRARY is None, reason="without the native part, machines are not saved"),
]

CIDS = (16, 21)
COMPLAINTS = re.compile(
    rb"rcu.*stall|soft lockup|hung_task|clocksource.*unstable|WARNING|\bBUG:|Oops|call trace", re.IGNORECASE
)
CLOCK_TOLERANCE_S = 0.01
FORK = b"crng reseeded due to virtual machine fork"
"""What a kernel with ACPI says when its generation has changed."""
DRAWN = ("getrandom", "urandom", "early", "init-at-random", "init-canary", "boot-id", "uuid")
"""What each enclave draws for itself; of its child's there is more."""


def saved(directory: Path, kernel: str) -> tuple[Path, Path]:
    """The image, and a saved machine of it."""
    try:
        image = build(directory, kernel)
    except images.ERRORS as error:
        pytest.skip(str(error))
    except FileNotFoundError:
        pytest.skip("there is no C compiler; Debian's package is gcc")
    path = directory / "saved"
    command = [images.command("vmm"), "snapshot", str(image), "-o", str(path), "--accel", "unicorn"]
    subprocess.run(command, check=True)
    return image, path


def configure(path: Path, cid: int) -> EnclaveConfig:
    return EnclaveConfig(eif_path=path, snapshot_path=path, accelerator="unicorn", cid=cid)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> list[SecondLife]:
    """Two enclaves that went on from one machine at once, the second with another address."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("home"))
    _, path = saved(tmp_path_factory.mktemp("nitro"), "nitro")
    return together([configure(path, cid) for cid in CIDS])


def test_two_enclaves_of_one_machine_share_no_random_number(lives: list[SecondLife]) -> None:
    one, other = lives

    assert len(one.said["getrandom"]) == len(one.said["urandom"]) == 1 << 20
    assert one.blocks() & other.blocks() == set()
    for name in (*DRAWN, "child-at-random", "child-canary", "child-stack"):
        assert one.said[name] != other.said[name], name


def test_the_random_numbers_of_one_enclave_do_not_repeat(lives: list[SecondLife]) -> None:
    (one, _) = lives
    numbers = one.said["getrandom"] + one.said["urandom"]
    blocks = [numbers[at : at + 8] for at in range(0, len(numbers), 8)]

    assert len(set(blocks)) == len(blocks)


def test_the_wall_clock_is_the_hosts_and_the_other_one_goes_on(lives: list[SecondLife]) -> None:
    for life in lives:
        wall_s, monotonic_s = life.clocks("clocks")
        later_s, later_monotonic_s = life.clocks("later")

        assert life.launched_s - CLOCK_TOLERANCE_S <= wall_s <= later_s <= life.heard_s + CLOCK_TOLERANCE_S
        assert abs((later_s - wall_s) - (later_monotonic_s - monotonic_s)) < CLOCK_TOLERANCE_S
        # It goes on from where the kernel was saved, at some seconds after its start.
        assert 0 < monotonic_s < 60


def test_each_enclave_has_the_address_of_its_own_run(lives: list[SecondLife]) -> None:
    assert [int.from_bytes(life.said["cid"], "little") for life in lives] == list(CIDS)


def test_the_kernel_has_nothing_to_complain_about(lives: list[SecondLife]) -> None:
    for life in lives:
        assert b"Run /init as init process" in life.said["log"]
        assert COMPLAINTS.search(life.said["log"]) is None


def test_a_machine_saved_long_ago_goes_on_without_a_jump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    _, path = saved(tmp_path, "nitro")
    future_ns = time.time_ns() + 400 * 86400 * 1_000_000_000
    monkeypatch.setattr("nitro_vmm.enclave.resume.time.time_ns", lambda: future_ns)

    life = SecondLife.of(configure(path, CIDS[0]))

    wall_s, monotonic_s = life.clocks("clocks")
    assert 0 <= wall_s - future_ns / 1e9 < 60
    assert monotonic_s < 60
    assert COMPLAINTS.search(life.said["log"]) is None


def test_a_machine_of_a_kernel_serves_every_image_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = tmp_path / "saved"
    try:
        sizes = (0, 100_000, 800_000)
        made = [
            build(tmp_path, "nitro", name=f"{size}", ballast=bytes(range(250)) * (size // 250))
            for size in sizes
        ]
    except images.ERRORS as error:
        pytest.skip(str(error))
    command = [
        images.command("vmm"),
        "snapshot",
        "--kernel",
        str(made[0]),
        "-o",
        str(path),
        "--accel",
        "unicorn",
    ]
    subprocess.run(command, check=True)

    lives = together(
        [
            EnclaveConfig(eif_path=image, snapshot_path=path, accelerator="unicorn", cid=cid)
            for image, cid in zip(made, (16, 21, 34), strict=True)
        ]
    )

    assert [int.from_bytes(life.said["cid"], "little") for life in lives] == [16, 21, 34]
    for life in lives:
        assert COMPLAINTS.search(life.said["log"]) is None
        assert life.launched_s - CLOCK_TOLERANCE_S <= life.clocks("clocks")[0] <= life.heard_s
        for other in lives:
            assert life is other or life.blocks() & other.blocks() == set()


def test_a_kernel_with_modules_and_acpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    try:
        image = images.hello("debian")
    except images.ERRORS as error:
        pytest.skip(str(error))
    path = tmp_path / "saved"
    vmm = images.command("vmm")
    subprocess.run([vmm, "snapshot", image, "-o", path, "--accel", "unicorn"], check=True)

    lives = [
        subprocess.run(
            [vmm, "run", "--console", "--from", path, "--accel", "unicorn", "--cid", str(cid)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
        for cid in CIDS
    ]

    random = [re.findall(rb"the first are ([0-9a-f]{16})", life.stdout) for life in lives]
    assert all(b"heartbeat after" in life.stderr for life in lives)
    assert all(len(found) == 1 for found in random)
    assert random[0] != random[1]
    assert all(life.stdout.count(FORK) == 1 for life in lives)
