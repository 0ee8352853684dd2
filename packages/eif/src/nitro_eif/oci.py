"""Container images: an OCI layout directory, an archive of one, what ``docker save`` writes, or a registry.

(OCI image-spec 1.1: image-layout.md, image-index.md, manifest.md, config.md; Docker's schema 2 manifests have
the same form.) Every blob is checked against its digest, every layer against the config's ``diff_ids``.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from nitro_eif.digests import CHUNK_BYTES, Progress
from nitro_eif.errors import EifFormatError, HostError, UsageError
from nitro_eif.format import Architecture
from nitro_eif.layers import apply_tar, read_members
from nitro_eif.reader import map_file
from nitro_eif.sources import unpacked
from nitro_eif.tree import Tree, clean

if TYPE_CHECKING:
    import tarfile

DOCUMENT_BYTES_MAX: Final = 4 << 20
"""Of a manifest, index or config, as registries limit them."""
_INDEX_DEPTH_MAX: Final = 4
_DIGEST: Final = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")
_PLATFORMS: Final = {Architecture.X86_64: "amd64", Architecture.AARCH64: "arm64"}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How an image wants to be run."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image, ready to be unpacked."""

    name: str
    digest: str
    """Of the config: what Docker calls the image's id."""
    config: ImageConfig
    raw_config: Json
    layers: tuple[Callable[[], memoryview], ...]
    """Each gives a layer's bytes, compressed or not."""
    diff_ids: tuple[str, ...]

    def unpack(self, stack: ExitStack, progress: Progress | None = None) -> Tree:
        """Apply all layers; the tree is valid until the stack closes.

        Raises:
            EifFormatError: a layer is malformed or not the one that the config names.
            HostError: a layer cannot be had.
        """
        tree = Tree()
        for index, (layer, diff_id) in enumerate(zip(self.layers, self.diff_ids, strict=True)):
            archive = unpacked(layer(), stack)
            place = Path(f"{self.name} (layer {index})")
            try:
                check_digest(archive, diff_id)
                apply_tar(tree, archive)
            except EifFormatError as error:
                raise EifFormatError(error.reason, offset=error.offset, path=place) from None
            if progress is not None:
                progress(index + 1, len(self.layers))
        return tree

    def inspect(self) -> Json:
        """Give what ``docker image inspect`` would say, as far as the image itself decides it."""
        raw = self.raw_config
        return {
            "Id": self.digest,
            "RepoTags": [self.name],
            "Created": raw.get("created"),
            "Architecture": raw.get("architecture"),
            "Os": raw.get("os"),
            "Config": raw.get("config"),
            "RootFS": {"Type": "layers", "Layers": list(self.diff_ids)},
        }


class Store(Protocol):
    """Where an image's parts come from."""

    def root(self) -> tuple[bytes, str]:
        """Give the top document, an index or manifest, and its media type (empty if unknown)."""

    def blob(self, digest: str, size: int | None) -> memoryview:
        """Give a blob's bytes; the caller checks their digest.

        Raises:
            EifFormatError: there is none.
            HostError: it cannot be had.
        """


def open_image(
    source: str,
    architecture: Architecture,
    stack: ExitStack,
    *,
    plain_http: bool = False,
    progress: Progress | None = None,
) -> Image:
    """Find an image by what a user calls it.

    ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]`` and ``docker-archive:FILE[:NAME]`` as skopeo writes them,
    ``docker://REFERENCE`` for a registry; without a prefix, a path that exists, else a reference.

    Raises:
        UsageError: the source is not written like that.
        EifFormatError: the image is malformed, or there is none for the architecture.
        HostError: a file or registry cannot be read.
    """
    kind, _, rest = source.partition(":")
    if kind == "docker" and rest.startswith("//"):
        return _from_registry(rest[2:], architecture, stack, plain_http=plain_http, progress=progress)
    if kind in {"oci", "oci-archive", "docker-archive"}:
        path, tag = _split_tag(rest)
        if not path.exists():
            raise HostError(f"{path}: there is no such file or directory")
        return _from_path(path, tag, source, architecture, stack)
    if Path(source).exists():
        return _from_path(Path(source), None, source, architecture, stack)
    if source.startswith(("/", "./", "../")):
        raise HostError(f"{source}: there is no such file or directory")
    return _from_registry(source, architecture, stack, plain_http=plain_http, progress=progress)


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
    from nitro_eif.registry import Reference, Registry  # noqa: PLC0415 - urllib and ssl are slow to import

    place = Reference.parse(reference)
    store = Registry(place, stack, plain_http=plain_http, progress=progress)
    return _resolve(store, str(place), architecture)


def _from_path(path: Path, tag: str | None, name: str, architecture: Architecture, stack: ExitStack) -> Image:
    if path.is_dir():
        return _resolve(_Layout(_Directory(path, stack), tag, path), name, architecture)
    archive = unpacked(stack.enter_context(map_file(path)), stack)
    files = _Archive(archive, path)
    if "oci-layout" in files.names and "index.json" in files.names:
        return _resolve(_Layout(files, tag, path), name, architecture)
    if "manifest.json" in files.names:
        return _from_docker_save(files, tag, path)
    raise EifFormatError("neither an OCI layout nor what docker save writes", offset=0, path=path)


class _Directory:
    """A layout on disk."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._root = root
        self._stack = stack

    def read(self, name: str) -> memoryview:
        path = self._root / name
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise EifFormatError(f"{name} leads out of the image's directory", offset=0, path=self._root)
        if not path.exists():
            raise EifFormatError(f"the image lacks {name}", offset=0, path=self._root)
        return self._stack.enter_context(map_file(path))


class _Archive:
    """A layout in a tar archive."""

    def __init__(self, archive: memoryview, path: Path) -> None:
        self._archive = archive
        self._path = path
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            for member, name in read_members(archive):
                self._members[name] = member
        except EifFormatError as error:
            raise EifFormatError(error.reason, offset=error.offset, path=path) from None
        self.names = self._members.keys()

    def read(self, name: str) -> memoryview:
        name = clean(name)
        member = self._members.get(name)
        for _ in range(2):
            # docker save of old links equal layers to each other.
            if member is not None and (member.issym() or member.islnk()):
                target = member.linkname if member.islnk() else f"{name.rpartition('/')[0]}/{member.linkname}"
                parts: list[str] = []
                for part in clean(target).split("/"):
                    parts = parts[:-1] if part == ".." else [*parts, part]
                member = self._members.get("/".join(parts))
        if member is None or not member.isreg():
            raise EifFormatError(f"the image lacks {name}", offset=0, path=self._path)
        return self._archive[member.offset_data : member.offset_data + member.size]


class _Layout:
    """The store that an OCI layout is."""

    def __init__(self, files: _Directory | _Archive, tag: str | None, path: Path) -> None:
        self._files = files
        self._tag = tag
        self._path = path

    def root(self) -> tuple[bytes, str]:
        index = load_document(self._files.read("index.json"), self._path)
        manifests = _objects(index.get("manifests"), "index.json's manifests", self._path)
        if self._tag is not None:
            manifests = [entry for entry in manifests if _annotation(entry) == self._tag]
            if not manifests:
                raise EifFormatError(
                    f"the layout has no image named {self._tag!r}", offset=0, path=self._path
                )
        names = sorted({_annotation(entry) or "" for entry in manifests})
        if len(names) > 1:
            raise UsageError(f"{self._path} has several images: choose with :TAG one of {', '.join(names)}")
        return json.dumps({"manifests": manifests}).encode(), ""

    def blob(self, digest: str, size: int | None) -> memoryview:
        del size
        algorithm, _, value = digest.partition(":")
        return self._files.read(f"blobs/{algorithm}/{value}")


def _annotation(entry: Json) -> str | None:
    annotations = entry.get("annotations")
    name = annotations.get("org.opencontainers.image.ref.name") if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


def _resolve(store: Store, name: str, architecture: Architecture) -> Image:
    place = Path(name)
    data, _ = store.root()
    document = load_document(data, place)
    for _ in range(_INDEX_DEPTH_MAX):
        if "manifests" not in document:
            break
        entry = _choose(_objects(document["manifests"], "the index's manifests", place), architecture, place)
        document = load_document(_blob(store, entry, place), place)
    if document.get("schemaVersion") == 1 or "config" not in document:
        raise EifFormatError("the image's manifest is none of OCI or Docker schema 2", offset=0, path=place)
    descriptor = document["config"]
    if not isinstance(descriptor, dict):
        raise EifFormatError("the manifest's config is no object", offset=0, path=place)
    raw = load_document(_blob(store, descriptor, place), place)
    layers = _objects(document.get("layers"), "the manifest's layers", place)
    return _image(
        name,
        str(descriptor["digest"]),
        raw,
        [lambda entry=entry: _blob(store, entry, place) for entry in layers],  # type: ignore[misc]
        architecture,
    )


def _from_docker_save(files: _Archive, tag: str | None, path: Path) -> Image:
    try:
        manifest = json.loads(bytes(files.read("manifest.json")[:DOCUMENT_BYTES_MAX]))
    except (ValueError, RecursionError) as error:
        raise EifFormatError(f"manifest.json is not JSON: {error}", offset=0, path=path) from None
    images = _objects(manifest, "manifest.json", path)
    if tag is not None:
        images = [entry for entry in images if tag in (entry.get("RepoTags") or [])]
    if len(images) != 1:
        names = ", ".join(str(name) for entry in images for name in entry.get("RepoTags") or ["(no name)"])
        found = f"{len(images)} images ({names}): choose with :NAME" if images else f"no image {tag or ''}"
        raise UsageError(f"{path} has {found}")
    entry = images[0]
    config, layers = entry.get("Config"), entry.get("Layers")
    if (
        not isinstance(config, str)
        or not isinstance(layers, list)
        or not all(isinstance(x, str) for x in layers)
    ):
        raise EifFormatError("manifest.json names no config and layers", offset=0, path=path)
    data = files.read(config)
    raw = load_document(data, path)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    name = tag or next(iter(entry.get("RepoTags") or []), path.name)
    return _image(name, digest, raw, [lambda layer=layer: files.read(layer) for layer in layers], None)  # type: ignore[misc]


def _choose(entries: list[Json], architecture: Architecture, place: Path) -> Json:
    wanted = _PLATFORMS[architecture]
    known = []
    for entry in entries:
        platform = entry.get("platform")
        if not isinstance(platform, dict):
            if len(entries) == 1:
                return entry
            continue
        known.append(f"{platform.get('os')}/{platform.get('architecture')}")
        if platform.get("os") == "linux" and platform.get("architecture") == wanted:
            return entry
    raise EifFormatError(
        f"no image for linux/{wanted}, only {', '.join(known) or 'none'}", offset=0, path=place
    )


def _blob(store: Store, descriptor: Json, place: Path) -> memoryview:
    digest, size = descriptor.get("digest"), descriptor.get("size")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise EifFormatError(f"{str(digest)[:100]!r} is no sha256 or sha512 digest", offset=0, path=place)
    if not isinstance(size, int) or size < 0:
        size = None
    if descriptor.get("urls") and "nondistributable" in str(descriptor.get("mediaType")):
        raise EifFormatError(f"layer {digest} is kept elsewhere ({descriptor['urls']})", offset=0, path=place)
    data = store.blob(digest, size)
    try:
        check_digest(data, digest)
    except EifFormatError as error:
        raise EifFormatError(error.reason, offset=0, path=place) from None
    return data


def check_digest(data: memoryview, digest: str) -> None:
    """Check bytes against a digest as OCI writes them.

    Raises:
        EifFormatError: they have another.
    """
    algorithm, _, _ = digest.partition(":")
    computed = hashlib.new(algorithm)
    for start in range(0, len(data), CHUNK_BYTES):
        computed.update(data[start : start + CHUNK_BYTES])
    if f"{algorithm}:{computed.hexdigest()}" != digest:
        raise EifFormatError(f"the data are not {digest} but {algorithm}:{computed.hexdigest()}", offset=0)


def _image(
    name: str,
    digest: str,
    raw: Json,
    layers: list[Callable[[], memoryview]],
    architecture: Architecture | None,
) -> Image:
    place = Path(name)
    rootfs = raw.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if (
        not isinstance(diff_ids, list)
        or len(diff_ids) != len(layers)
        or not all(isinstance(text, str) and _DIGEST.fullmatch(text) for text in diff_ids)
    ):
        raise EifFormatError(
            "the image's config does not name one diff_id for each layer", offset=0, path=place
        )
    config = _config(raw, place)
    if architecture is not None and config.architecture not in {"", _PLATFORMS[architecture]}:
        message = f"the image is for {config.architecture}, not {_PLATFORMS[architecture]}; see --arch"
        raise EifFormatError(message, offset=0, path=place)
    return Image(name, digest, config, raw, tuple(layers), tuple(diff_ids))


def _config(raw: Json, place: Path) -> ImageConfig:
    config = raw.get("config") or {}
    if not isinstance(config, dict):
        raise EifFormatError("the image's config is no object", offset=0, path=place)

    def texts(key: str) -> tuple[str, ...]:
        value = config.get(key) or []
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise EifFormatError(f"the image config's {key} is no list of strings", offset=0, path=place)

    def text(key: str, owner: Mapping[str, Any] = config) -> str:
        value = owner.get(key) or ""
        if isinstance(value, str):
            return value
        raise EifFormatError(f"the image config's {key} is no string", offset=0, path=place)

    return ImageConfig(
        texts("Entrypoint"),
        texts("Cmd"),
        texts("Env"),
        text("WorkingDir"),
        text("User"),
        text("architecture", raw),
    )


def load_document(data: bytes | memoryview, place: Path) -> Json:
    """Parse a manifest, index or config.

    Raises:
        EifFormatError: it is no JSON object, or absurdly long.
    """
    if len(data) > DOCUMENT_BYTES_MAX:
        raise EifFormatError(f"a manifest or config of {len(data)} bytes", offset=0, path=place)
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise EifFormatError(f"a manifest or config is not JSON: {error}", offset=0, path=place) from None
    if not isinstance(value, dict):
        raise EifFormatError("a manifest or config is no JSON object", offset=0, path=place)
    return value


def _objects(value: object, what: str, place: Path) -> list[Json]:
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return value
    if what.endswith("layers") and value == []:
        return []
    raise EifFormatError(f"{what} is no list of objects", offset=0, path=place)
