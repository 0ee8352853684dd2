import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from containers import Container, descriptor
from nitro_eif import Architecture, EifFormatError, HostError, Image, UsageError, open_image
from nitro_eif.testing import tar_member, tar_of

FILES = {"bin/app": b"the application", "new": b"new"}


def contents(image: Image, stack: ExitStack) -> dict[str, bytes]:
    return {
        path: bytes(node.data)
        for path, node in image.unpack(stack).items()
        if not node.is_directory and not path.startswith("etc/")
    }


@pytest.mark.parametrize("compress", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("form", ["layout", "oci_archive", "docker_archive"])
def test_every_form_of_an_image_has_the_same_files(tmp_path: Path, compress: str, form: str) -> None:
    path = getattr(Container(compress), form)(tmp_path / "image")

    with ExitStack() as stack:
        image = open_image(str(path), Architecture.X86_64, stack)

        assert contents(image, stack) == FILES
        assert image.config.entrypoint == ("/bin/app",)
        assert image.config.cmd == ("--serve",)
        assert (image.config.env, image.config.workdir, image.config.user) == (("A=1",), "/srv", "app")
        assert image.inspect()["Architecture"] == "amd64"


def test_prefixes_and_tags_choose_an_image(tmp_path: Path) -> None:
    layout = Container().layout(tmp_path / "layout", tag="v1")
    archive = Container().docker_archive(tmp_path / "saved.tar")
    with ExitStack() as stack:
        for source in (f"oci:{layout}", f"oci:{layout}:v1", f"docker-archive:{archive}:team/app:1.2"):
            open_image(source, Architecture.X86_64, stack)
        with pytest.raises(EifFormatError, match="no image named 'v2'"):
            open_image(f"oci:{layout}:v2", Architecture.X86_64, stack)
        with pytest.raises(UsageError, match="no image other"):
            open_image(f"docker-archive:{archive}:other", Architecture.X86_64, stack)
        for missing in ("oci:missing", "./missing"):
            with pytest.raises(HostError, match="no such file"):
                open_image(missing, Architecture.X86_64, stack)


def test_a_layout_with_several_images_asks_which(tmp_path: Path) -> None:
    layout = Container().layout(tmp_path / "layout", tag="a")
    index = json.loads((layout / "index.json").read_text())
    index["manifests"].append(
        index["manifests"][0] | {"annotations": {"org.opencontainers.image.ref.name": "b"}}
    )
    (layout / "index.json").write_text(json.dumps(index))
    with ExitStack() as stack:
        with pytest.raises(UsageError, match="several images") as caught:
            open_image(f"oci:{layout}", Architecture.X86_64, stack)
        assert caught.value.hint == "choose with :TAG one of a, b"
        open_image(f"oci:{layout}:b", Architecture.X86_64, stack)


def test_the_architecture_chooses_from_an_index(tmp_path: Path) -> None:
    intel, arm = Container(), Container(architecture="arm64")
    layout = intel.layout(tmp_path / "layout")
    index = intel.index(arm)
    intel.blobs.update(arm.blobs)
    for name, blob in {**intel.blobs, descriptor(index, "")["digest"]: index}.items():
        (layout / "blobs" / "sha256" / name.partition(":")[2]).write_bytes(blob)
    (layout / "index.json").write_text(json.dumps({"manifests": [descriptor(index, "")]}))
    with ExitStack() as stack:
        for architecture, name in ((Architecture.X86_64, "amd64"), (Architecture.AARCH64, "arm64")):
            assert open_image(f"oci:{layout}", architecture, stack).config.architecture == name


def test_an_image_for_another_processor_is_refused(tmp_path: Path) -> None:
    layout = Container(architecture="arm64").layout(tmp_path / "layout")
    with ExitStack() as stack, pytest.raises(EifFormatError, match="arm64, not amd64"):
        open_image(f"oci:{layout}", Architecture.X86_64, stack)


def test_blobs_that_are_not_what_they_are_called_are_refused(tmp_path: Path) -> None:
    container = Container()
    for victim in container.blobs:
        layout = container.layout(tmp_path / victim.partition(":")[2])
        blob = layout / "blobs" / "sha256" / victim.partition(":")[2]
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
        with ExitStack() as stack, pytest.raises(EifFormatError, match="the data are not"):
            open_image(f"oci:{layout}", Architecture.X86_64, stack).unpack(stack)


def test_a_layer_that_the_config_does_not_name_is_refused(tmp_path: Path) -> None:
    container = Container()
    container.layers[1] = container.layers[0]
    archive = container.docker_archive(tmp_path / "saved.tar")
    with ExitStack() as stack, pytest.raises(EifFormatError, match=r"layer 1.*the data are not"):
        open_image(str(archive), Architecture.X86_64, stack).unpack(stack)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"Cmd": "text"}, "Cmd is not a list"),
        ({"Env": [1]}, "Env is not a list"),
        ({"User": 7}, "User is not a string"),
    ],
)
def test_broken_configs_are_refused(tmp_path: Path, config: dict[str, object], reason: str) -> None:
    layout = Container(**config).layout(tmp_path / "layout")  # type: ignore[arg-type]
    with ExitStack() as stack, pytest.raises(EifFormatError, match=reason):
        open_image(f"oci:{layout}", Architecture.X86_64, stack)


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"no tar at all")
    layout = tmp_path / "layout"
    layout.mkdir()
    with ExitStack() as stack:
        for source in (path, layout):
            with pytest.raises(EifFormatError):
                open_image(str(source), Architecture.X86_64, stack)
        (layout / "index.json").write_text('{"manifests": [{"digest": "sha256:../../etc/passwd"}]}')
        with pytest.raises(EifFormatError, match="not a sha256 or sha512 digest"):
            open_image(f"oci:{layout}", Architecture.X86_64, stack)


def test_progress_counts_layers(tmp_path: Path) -> None:
    path = Container().docker_archive(tmp_path / "saved.tar")
    seen: list[tuple[int, int]] = []
    with ExitStack() as stack:
        open_image(str(path), Architecture.X86_64, stack).unpack(
            stack, progress=lambda done, total: seen.append((done, total))
        )

    assert seen == [(1, 2), (2, 2)]


def changed_manifest(tmp_path: Path, changes: dict[str, object]) -> str:
    """A layout whose manifest says something else."""
    container = Container()
    layout = container.layout(tmp_path / "layout")
    manifest = json.dumps(json.loads(container.manifest) | changes).encode()
    entry = descriptor(manifest, "")
    (layout / "blobs" / "sha256" / str(entry["digest"]).partition(":")[2]).write_bytes(manifest)
    (layout / "index.json").write_text(json.dumps({"manifests": [entry]}))
    return f"oci:{layout}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schemaVersion": 1}, "neither of OCI nor of Docker's schema 2"),
        ({"config": 7}, "the manifest's config is not an object"),
        ({"layers": 7}, "the manifest's layers"),
        ({"layers": []}, "one diff_id for each layer"),
    ],
)
def test_broken_manifests_are_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    source = changed_manifest(tmp_path, changes)

    with ExitStack() as stack, pytest.raises(EifFormatError, match=reason):
        open_image(source, Architecture.X86_64, stack)


@pytest.mark.parametrize("size", [None, "large", -1])
def test_a_size_that_is_none_is_not_looked_at(tmp_path: Path, size: object) -> None:
    config = json.loads(Container().manifest)["config"] | {"size": size}
    source = changed_manifest(tmp_path, {"config": config})

    with ExitStack() as stack:
        assert contents(open_image(source, Architecture.X86_64, stack), stack) == FILES


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"urls": ["https://a"]}, False),
        ({"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"}, False),
        (
            {
                "urls": ["https://a"],
                "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            },
            True,
        ),
    ],
)
def test_a_layer_that_is_elsewhere_is_refused(
    tmp_path: Path, changes: dict[str, object], refused: object
) -> None:
    first, second = json.loads(Container().manifest)["layers"]
    source = changed_manifest(tmp_path, {"layers": [first | changes, second]})

    with ExitStack() as stack:
        image = open_image(source, Architecture.X86_64, stack)
        if refused:
            with pytest.raises(EifFormatError, match=r"is kept elsewhere \(\['https://a'\]\)"):
                image.unpack(stack)
        else:
            assert contents(image, stack) == FILES


@pytest.mark.parametrize(
    "entry",
    [
        {"Layers": ["0/layer.tar"]},
        {"Config": 7, "Layers": ["0/layer.tar"]},
        {"Config": "config.json"},
        {"Config": "config.json", "Layers": "0/layer.tar"},
        {"Config": "config.json", "Layers": [7]},
    ],
)
def test_broken_manifests_of_docker_are_refused(tmp_path: Path, entry: dict[str, object]) -> None:
    archive = tmp_path / "saved.tar"
    archive.write_bytes(tar_of([(tar_member("manifest.json"), json.dumps([entry]).encode())]))

    with ExitStack() as stack, pytest.raises(EifFormatError, match="names no config and layers"):
        open_image(f"docker-archive:{archive}", Architecture.X86_64, stack)


def test_images_without_names_are_counted_and_said_to_have_none(tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    images = [{"Config": "a", "Layers": []}, {"Config": "b", "Layers": [], "RepoTags": ["team/app:1"]}]
    archive.write_bytes(tar_of([(tar_member("manifest.json"), json.dumps(images).encode())]))

    with ExitStack() as stack, pytest.raises(UsageError, match=r"2 images \(\(no name\), team/app:1\)"):
        open_image(f"docker-archive:{archive}", Architecture.X86_64, stack)


@pytest.mark.parametrize("diff_ids", [None, "sha256:", [], [7, 8], ["sha256:00", "sha256:00"]])
def test_layers_without_digests_of_their_contents_are_refused(tmp_path: Path, diff_ids: object) -> None:
    container = Container()
    config = json.loads(container.config) | {"rootfs": {"diff_ids": diff_ids}}
    container.config = json.dumps(config).encode()

    archive = container.docker_archive(tmp_path / "saved.tar")

    with ExitStack() as stack, pytest.raises(EifFormatError, match="one diff_id for each layer"):
        open_image(f"docker-archive:{archive}", Architecture.X86_64, stack)


def test_a_tar_file_with_half_of_what_a_layout_has_is_no_image(tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    for name in ("oci-layout", "index.json"):
        archive.write_bytes(tar_of([(tar_member(name), b"{}")]))

        with ExitStack() as stack, pytest.raises(EifFormatError, match="neither an OCI layout"):
            open_image(str(archive), Architecture.X86_64, stack)


def test_a_file_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    archive = Container().docker_archive(tmp_path / "saved:1.tar")

    with ExitStack() as stack:
        assert contents(open_image(f"docker-archive:{archive}", Architecture.X86_64, stack), stack) == FILES
