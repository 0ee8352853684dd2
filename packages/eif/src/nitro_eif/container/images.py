"""Container images: an OCI layout directory, an archive of one, what ``docker save`` writes, or a registry.

(OCI image-spec 1.1: image-layout.md, image-index.md, manifest.md, config.md; Docker's schema 2 manifests have
the same form.) Every blob is checked against its digest, every layer against the config's ``diff_ids``.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from nitro_eif.architecture import Architecture
from nitro_eif.container.documents import DIGEST, Json, check_digest, load_document, load_json, objects
from nitro_eif.container.stores import Archive, Directory, Layout, Store
from nitro_eif.errors import EifFormatError, HostError, UsageError
from nitro_eif.files import CHUNK_BYTES, Progress, map_file, map_temporary, scratch_file
from nitro_eif.filesystem.compression import unpacked
from nitro_eif.filesystem.tar import apply_tar
from nitro_eif.filesystem.tree import Tree

_INDEX_DEPTH_MAX: Final = 4
"""How many indexes may lead to each other before a manifest comes."""


_ARCHIVE_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".oci")
_ELSEWHERE: Final = {
    "containers-storage": "podman save --format oci-archive -o image.tar {name}",
    "dir": "skopeo copy dir:{name} oci-archive:image.tar",
}
"""Where else users have images, as skopeo names it, and how to bring them here."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How an image wants to be run."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    architecture: str = ""
    """The processor that it is for, in OCI's words."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image, ready to be unpacked."""

    name: str
    """What the image calls itself, wherever its files are; empty if it has no name."""
    place: str
    """Where it is, for messages."""
    digest: str
    """Of the config: what Docker calls the image's id."""
    config: ImageConfig
    raw_config: Json
    layers: tuple[Callable[[], memoryview], ...]
    """Each gives a layer's bytes, compressed or not."""
    diff_ids: tuple[str, ...]

    def unpack(self, stack: ExitStack, progress: Progress | None = None) -> Tree:
        """Apply all layers.

        Args:
            stack: Closes temporary files; the tree is valid until then.
            progress: Called with layers done and layers in all.

        Raises:
            EifFormatError: A layer is malformed or not the one that the config names.
            HostError: A layer cannot be had.
        """
        tree = Tree()
        for index, (layer, diff_id) in enumerate(zip(self.layers, self.diff_ids, strict=True)):
            place = Path(f"{self.place} (layer {index})")
            data = layer()
            try:
                archive = unpacked(data, stack)
                check_digest(archive, diff_id)
                apply_tar(tree, archive)
            except EifFormatError as error:
                raise error.at(place) from None
            if progress is not None:
                progress(index + 1, len(self.layers))
        return tree

    def inspect(self) -> Json:
        """What ``docker image inspect`` would say, as far as the image itself decides it.

        Where the image lay when it was read is not in it, so that all who build from it get the same.
        """
        raw = self.raw_config
        return {
            "Id": self.digest,
            "RepoTags": [self.name] if self.name else [],
            "Created": raw.get("created"),
            "Architecture": raw.get("architecture"),
            "Os": raw.get("os"),
            "Config": raw.get("config"),
            "RootFS": {"Type": "layers", "Layers": list(self.diff_ids)},
        }


def open_image(
    source: str,
    architecture: Architecture,
    stack: ExitStack,
    *,
    plain_http: bool = False,
    progress: Progress | None = None,
) -> Image:
    """Find an image by what a user calls it.

    ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:NAME]`` and ``docker-daemon:NAME``
    as skopeo writes them, ``docker://REFERENCE`` for a registry, ``-`` for an archive in standard input;
    without a prefix, a path that exists, else a reference.

    Args:
        source: What the user calls it.
        architecture: Which image of an index is meant.
        stack: Closes files and downloads; the image is valid until then.
        plain_http: Talk HTTP without TLS to the registry.
        progress: Called with bytes downloaded and the size of the present blob.

    Raises:
        UsageError: The source is not written like that.
        EifFormatError: The image is malformed, or there is none for the architecture.
        HostError: A file or registry cannot be read.
    """
    kind, _, rest = source.partition(":")
    if kind == "docker" and rest.startswith("//"):
        return _from_registry(rest[2:], architecture, stack, plain_http=plain_http, progress=progress)
    if source == "-":
        return _from_stream(stack, architecture)
    if kind == "docker-daemon":
        return _from_daemon(rest, stack, architecture)
    if kind in _ELSEWHERE:
        raise UsageError(
            f"{source}: images of {kind} are not read from where they are",
            hint=f"{_ELSEWHERE[kind].format(name=rest)}, and give oci-archive:image.tar",
        )
    if kind in {"oci", "oci-archive", "docker-archive"}:
        path, tag = _split_tag(rest)
        if not path.exists():
            raise HostError(f"{path}: there is no such file or directory")
        return _from_path(path, tag, architecture, stack)
    if Path(source).exists():
        return _from_path(Path(source), None, architecture, stack)
    if _looks_like_path(source):
        raise HostError(
            f"{source}: there is no such file or directory",
            hint=f"write docker://{source} if an image on a registry is meant",
        )
    return _from_registry(source, architecture, stack, plain_http=plain_http, progress=progress)


def _looks_like_path(text: str) -> bool:
    """Whether a name that no file has is a mistyped path rather than an image on a registry."""
    if text.startswith(("/", "./", "../", "~")) or text.endswith(_ARCHIVE_SUFFIXES):
        return True
    # A reference begins with a host or a user's name; a directory of that name here says otherwise.
    return "/" in text and Path(text.partition("/")[0]).is_dir()


def _from_stream(stack: ExitStack, architecture: Architecture) -> Image:
    file = stack.enter_context(scratch_file())
    while data := sys.stdin.buffer.read(CHUNK_BYTES):
        file.write(data)
    return _from_archive(map_temporary(file), None, Path("standard input"), architecture, stack)


def _from_daemon(name: str, stack: ExitStack, architecture: Architecture) -> Image:
    from nitro_eif.container.docker import save_from_daemon  # noqa: PLC0415 - http is slow to import

    file = stack.enter_context(scratch_file())
    save_from_daemon(name, file)
    return _from_archive(map_temporary(file), None, Path(f"docker-daemon:{name}"), architecture, stack)


def _split_tag(text: str) -> tuple[Path, str | None]:
    if Path(text).exists() or ":" not in text:
        return Path(text), None
    path, _, tag = text.partition(":")
    return Path(path), tag


def _from_registry(
    reference: str,
    architecture: Architecture,
    stack: ExitStack,
    *,
    plain_http: bool,
    progress: Progress | None,
) -> Image:
    from nitro_eif.container.references import Reference  # noqa: PLC0415 - urllib and ssl are slow to import
    from nitro_eif.container.registry import Registry  # noqa: PLC0415

    place = Reference.parse(reference)
    store = Registry(place, stack, plain_http=plain_http, progress=progress)
    return _resolve(store, Path(str(place)), architecture)


def _from_path(path: Path, tag: str | None, architecture: Architecture, stack: ExitStack) -> Image:
    if path.is_dir():
        return _resolve(Layout(Directory(path, stack), tag, path), path, architecture)
    return _from_archive(stack.enter_context(map_file(path)), tag, path, architecture, stack)


def _from_archive(
    view: memoryview, tag: str | None, path: Path, architecture: Architecture, stack: ExitStack
) -> Image:
    try:
        archive = unpacked(view, stack)
    except EifFormatError as error:
        raise error.at(path) from None
    files = Archive(archive, path)
    if "oci-layout" in files.names and "index.json" in files.names:
        return _resolve(Layout(files, tag, path), path, architecture)
    if "manifest.json" in files.names:
        return _from_docker_save(files, tag, path, architecture)
    raise EifFormatError("neither an OCI layout nor what docker save writes", path=path)


def _resolve(store: Store, place: Path, architecture: Architecture) -> Image:
    root = store.root()
    document = load_document(root.document, place)
    for _ in range(_INDEX_DEPTH_MAX):
        if "manifests" not in document:
            break
        entry = _choose(objects(document["manifests"], "the index's manifests", place), architecture, place)
        document = load_document(_blob(store, entry, place), place)
    if document.get("schemaVersion") == 1 or "config" not in document:
        raise EifFormatError("the image's manifest is neither of OCI nor of Docker's schema 2", path=place)
    descriptor = document["config"]
    if not isinstance(descriptor, dict):
        raise EifFormatError("the manifest's config is not an object", path=place)
    raw = load_document(_blob(store, descriptor, place), place)
    layers = objects(document.get("layers"), "the manifest's layers", place, may_be_empty=True)
    readers = [partial(_blob, store, entry, place) for entry in layers]
    return _image(root.name, str(descriptor["digest"]), raw, readers, place=place, architecture=architecture)


def _from_docker_save(files: Archive, tag: str | None, path: Path, architecture: Architecture) -> Image:
    images = objects(load_json(files.read("manifest.json"), path), "manifest.json", path)
    if tag is not None:
        images = [entry for entry in images if tag in (entry.get("RepoTags") or [])]
    if len(images) != 1:
        names = ", ".join(str(name) for entry in images for name in entry.get("RepoTags") or ["(no name)"])
        if not images:
            raise UsageError(f"{path} has no image {tag or ''}")
        raise UsageError(f"{path} has {len(images)} images ({names})", hint="choose with :NAME")
    entry = images[0]
    config, layers = entry.get("Config"), entry.get("Layers")
    if (
        not isinstance(config, str)
        or not isinstance(layers, list)
        or not all(isinstance(layer, str) for layer in layers)
    ):
        raise EifFormatError("manifest.json names no config and layers", path=path)
    data = files.read(config)
    raw = load_document(data, path)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    name = tag or next(iter(entry.get("RepoTags") or []), "")
    readers = [partial(files.read, layer) for layer in layers]
    return _image(str(name), digest, raw, readers, place=path, architecture=architecture)


def _choose(entries: list[Json], architecture: Architecture, place: Path) -> Json:
    known = []
    for entry in entries:
        platform = entry.get("platform")
        if not isinstance(platform, dict):
            # An index of one image need not say what it is for; its config does.
            if len(entries) == 1:
                return entry
            continue
        known.append(f"{platform.get('os')}/{platform.get('architecture')}")
        if platform.get("os") == "linux" and platform.get("architecture") == architecture.oci_name:
            return entry
    raise EifFormatError(
        f"no image for linux/{architecture.oci_name}, only {', '.join(known) or 'none'}", path=place
    )


def _blob(store: Store, descriptor: Json, place: Path) -> memoryview:
    digest, size = descriptor.get("digest"), descriptor.get("size")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise EifFormatError(f"{str(digest)[:100]!r} is not a sha256 or sha512 digest", path=place)
    if not isinstance(size, int) or size < 0:
        size = None
    if descriptor.get("urls") and "nondistributable" in str(descriptor.get("mediaType")):
        raise EifFormatError(f"layer {digest} is kept elsewhere ({descriptor['urls']})", path=place)
    data = store.blob(digest, size)
    try:
        check_digest(data, digest)
    except EifFormatError as error:
        raise error.at(place) from None
    return data


def _image(
    name: str,
    digest: str,
    raw: Json,
    layers: Sequence[Callable[[], memoryview]],
    *,
    place: Path,
    architecture: Architecture,
) -> Image:
    rootfs = raw.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if (
        not isinstance(diff_ids, list)
        or len(diff_ids) != len(layers)
        or not all(isinstance(text, str) and DIGEST.fullmatch(text) for text in diff_ids)
    ):
        raise EifFormatError("the image's config does not name one diff_id for each layer", path=place)
    config = _config(raw, place)
    if config.architecture not in {"", architecture.oci_name}:
        raise EifFormatError(
            f"the image is for {config.architecture}, not {architecture.oci_name}",
            path=place,
            hint="choose the processor with --arch",
        )
    return Image(name, str(place), digest, config, raw, tuple(layers), tuple(diff_ids))


def _config(raw: Json, place: Path) -> ImageConfig:
    config = raw.get("config") or {}
    if not isinstance(config, dict):
        raise EifFormatError("the image's config is not an object", path=place)

    def texts(key: str) -> tuple[str, ...]:
        value = config.get(key) or []
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise EifFormatError(f"the image config's {key} is not a list of strings", path=place)

    def text(key: str, owner: Mapping[str, Any] = config) -> str:
        value = owner.get(key) or ""
        if isinstance(value, str):
            return value
        raise EifFormatError(f"the image config's {key} is not a string", path=place)

    return ImageConfig(
        texts("Entrypoint"),
        texts("Cmd"),
        texts("Env"),
        text("WorkingDir"),
        text("User"),
        text("architecture", raw),
    )
