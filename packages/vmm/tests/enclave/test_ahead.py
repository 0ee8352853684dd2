"""Digests that are begun before anybody asks."""

import os
from pathlib import Path

import pytest

from nitro_eif import Eif, measure
from nitro_vmm import EnclaveConfig
from nitro_vmm.enclave.ahead import Ahead
from nitro_vmm.snapshot.digest import DIGESTED_FROM, PART_BYTES, digest_of


def nothing() -> None:
    pass


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_an_image_is_measured_and_open_in_its_block_only(image: Path) -> None:
    with Eif.open(image) as eif:
        expected = measure(eif)
    del eif  # which has the file mapped
    before = descriptors()

    with Ahead(EnclaveConfig(eif_path=image)) as ahead:
        with ahead.image(nothing) as found:
            assert found is not None
            eif, measured = found
            kernel = bytes(eif.kernel)
        del eif, found
        after = descriptors()
        mapped = Path("/proc/self/maps").read_text()

    assert measured.measurements == expected
    assert kernel
    assert str(image) not in mapped
    assert after == before


def test_a_file_that_takes_the_images_name_later_is_not_mixed_up_with_it(image: Path) -> None:
    with Eif.open(image) as eif:
        expected, kernel = measure(eif), bytes(eif.kernel)

    with Ahead(EnclaveConfig(eif_path=image)) as ahead:
        ahead._thread.join()
        image.rename(image.with_name("other"))
        image.write_bytes(b"no image")
        with ahead.image(nothing) as found:
            assert found is not None
            assert found[1].measurements == expected
            assert bytes(found[0].kernel) == kernel


@pytest.mark.parametrize("kind", ["nothing", "empty", "pipe", "directory"])
def test_what_cannot_be_read_is_left_to_others(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "empty":
        path.touch()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    before = descriptors()

    with (
        Ahead(EnclaveConfig(eif_path=path, snapshot_path=tmp_path / "none")) as ahead,
        ahead.image(nothing) as image,
    ):
        assert ahead.saved is None
        assert image is None

    with Ahead(EnclaveConfig(eif_path=path, snapshot_path=path)) as ahead, ahead.image(nothing) as image:
        assert ahead.saved is None
        assert image is None
    assert descriptors() == before


def test_a_saved_machine_has_its_digest_with_it(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    content = bytes(range(256)) * (2 * PART_BYTES // 256) + b"end"
    path.write_bytes(bytes(DIGESTED_FROM) + content)
    before = descriptors()

    with Ahead(EnclaveConfig(eif_path=path, snapshot_path=path)) as ahead:
        assert ahead.saved is not None
        file, digest = ahead.saved
        path.unlink()
        computed = digest.result()
        read = file.read()

    assert computed == digest_of(memoryview(content))
    assert read.endswith(content)
    assert descriptors() == before


def test_whoever_gives_up_need_not_wait(vast_image: Path) -> None:
    def give_up() -> None:
        raise InterruptedError

    with (
        Ahead(EnclaveConfig(eif_path=vast_image)) as ahead,
        pytest.raises(InterruptedError),
        ahead.image(give_up),
    ):
        pass
