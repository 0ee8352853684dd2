"""Enclaves on KVM go on from saved machines, with two processors: their numbers and clocks are their own."""

import io
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

import images
from kvm_host import require_kvm
from nitro_eif import Contents, Eif, Node, write_cpio, write_eif
from nitro_vmm import BlockingEnclave, EnclaveConfig, Outcome
from nitro_vmm.accel.kvm import Kvm
from nitro_vmm.enclave.saved import IMAGE, KERNEL
from nitro_vmm.enclave.saving import Saving
from nitro_vmm.snapshot.store import new_file
from second_lives import SecondLife, together

pytestmark = pytest.mark.slow

PATIENCE_S = 600
CIDS = (16, 21)
PROCESSORS = 2
COMPLAINTS = re.compile(rb"rcu.*stall|soft lockup|hung_task|WARNING|\bBUG:|Oops|call trace", re.IGNORECASE)
CLOCK_TOLERANCE_S = 0.05
DRAWN = ("getrandom", "urandom", "early", "init-at-random", "init-canary", "boot-id", "uuid")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def image() -> Path:
    require_kvm()
    try:
        return images.second_life()
    except images.ERRORS as error:
        pytest.skip(str(error))


def configure(image: Path, *, saved: Path | None = None, cid: int = CIDS[0]) -> EnclaveConfig:
    return EnclaveConfig(
        eif_path=image,
        snapshot_path=saved,
        accelerator="kvm",
        processors=PROCESSORS,
        memory_mib=128,
        boot_timeout_s=PATIENCE_S,
        cid=cid,
        quiet_kernel=True,
    )


def save(image: Path, kind: str, path: Path) -> None:
    with ExitStack() as resources, new_file(path) as file:
        Saving(configure(image), Kvm(), resources, kind=kind, say=print).save(file)


def seen_through(config: EnclaveConfig) -> bytes:
    """What an enclave of the hello image prints, once it has ended well."""
    with BlockingEnclave(config) as enclave:
        result = enclave.wait(PATIENCE_S)
        printed = enclave.console_output
    print(printed.decode(errors="replace"), result, sep="\n")
    assert result.outcome is Outcome.ENDED
    assert result.heartbeat_s is not None
    assert b"the application exited with 0" in printed
    return printed


def larger(image: Path, path: Path) -> Path:
    """The image with one ramdisk more, for the same kernel and command line."""
    archive = io.BytesIO()
    write_cpio(archive, [("ballast", Node.file(bytes(range(250)) * 400))])
    with Eif.open(image) as eif:
        ramdisks = [*map(bytes, eif.ramdisks), archive.getvalue()]
        write_eif(
            Contents(
                kernel=bytes(eif.kernel),
                cmdline=bytes(eif.cmdline),
                ramdisks=ramdisks,
                metadata=b'{"ImageName": "larger"}',
            ),
            path,
        )
    return path


def check(lives: list[SecondLife]) -> None:
    """That two enclaves are as if they had booted."""
    one, other = lives
    assert len(one.said["getrandom"]) == len(other.said["urandom"]) == 1 << 20
    assert one.blocks() & other.blocks() == set()
    for name in DRAWN:
        assert one.said[name] != other.said[name], name
    assert [int.from_bytes(life.said["cid"], "little") for life in lives] == list(CIDS)
    for life in lives:
        # What came before has nothing to do with being saved.
        _, _, log = life.said["log"].partition(b"Trying to unpack rootfs")
        assert b"Run /init" in log
        assert COMPLAINTS.search(log) is None, log.decode()
        wall_s, monotonic_s = life.clocks("clocks")
        later_s, later_monotonic_s = life.clocks("later")
        assert life.launched_s - CLOCK_TOLERANCE_S <= wall_s <= later_s
        assert later_s <= life.heard_s + CLOCK_TOLERANCE_S
        assert 0 < monotonic_s <= later_monotonic_s < PATIENCE_S


def test_two_enclaves_of_one_machine(image: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    save(image, IMAGE, saved)

    lives = together([configure(image, saved=saved, cid=cid) for cid in CIDS])

    check(lives)


def test_a_machine_of_a_kernel_serves_two_images(image: Path, tmp_path: Path) -> None:
    saved, other = tmp_path / "saved", larger(image, tmp_path / "larger.eif")
    save(image, KERNEL, saved)

    lives = together(
        [configure(eif, saved=saved, cid=cid) for eif, cid in zip((other, image), CIDS, strict=True)]
    )

    check(lives)


@pytest.mark.parametrize("kind", [IMAGE, KERNEL])
def test_a_kernel_with_modules_and_acpi(tmp_path: Path, kind: str) -> None:
    require_kvm()
    try:
        image = images.hello("debian")
    except images.ERRORS as error:
        pytest.skip(str(error))
    saved = tmp_path / "saved"
    save(image, kind, saved)

    printed = [seen_through(configure(image, saved=saved, cid=cid)) for cid in CIDS]

    random = [re.findall(rb"the first are ([0-9a-f]{16})", each) for each in printed]
    assert all(len(found) == 1 for found in random)
    assert random[0] != random[1]
