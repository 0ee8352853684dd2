"""Kernels: nitro-cli's blobs, and a distribution's packages with the modules that an enclave needs.

A module says in its ``.modinfo`` section which others it needs; packages have no ``modules.dep``, which is
made when they are installed.
"""

import io
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nitro_eif.architecture import Architecture
from nitro_eif.build.packages import package_files, unpack_packages
from nitro_eif.errors import EifFormatError, UsageError
from nitro_eif.files import map_file, read_file
from nitro_eif.filesystem.compression import compression_of, unpack
from nitro_eif.filesystem.tree import Tree

NEEDED_MODULES: Final = ("virtio_mmio", "vsock", "vmw_vsock_virtio_transport", "nsm")
"""What an enclave cannot do without: its devices' bus, sockets to the parent, and the security module."""
CMDLINE: Final = (
    "reboot=k panic=30 pci=off console=ttyS0"
    " i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd random.trust_cpu=on"
)
"""What nitro-cli uses on x86_64, without what its kernel does not know."""
CMDLINE_AARCH64: Final = "reboot=k panic=30 pci=off console=ttyS0 random.trust_cpu=on root=/dev/ram0"

_MODULES_ROOTS: Final = ("usr/lib/modules", "lib/modules")

MODULE_BYTES_MAX: Final = 64 << 20
"""Of one module, unpacked."""
ALL_MODULES_BYTES_MAX: Final = 256 << 20
"""Of all modules that are picked, unpacked."""
_SECTION_NAME_BYTES_MAX: Final = 64
_MODINFO_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and what belongs to it."""

    image: bytes | memoryview
    cmdline: str
    modules: tuple[tuple[str, bytes], ...] = ()
    """Names and contents of modules, in the order in which they are loaded."""
    init: bytes | None = None
    """AWS's init, where it comes with the kernel."""
    nsm: bytes | None = None
    """AWS's NSM driver, where it comes with the kernel."""
    config: str | None = None
    """The kernel's configuration."""
    missing: tuple[str, ...] = ()
    """Modules that were asked for, but are neither there nor built in."""


def read_blobs(directory: Path, architecture: Architecture, stack: ExitStack) -> Kernel:
    """Read nitro-cli's blobs: kernel, command line, init and, where it is one, the NSM driver.

    Args:
        directory: Like ``/usr/share/nitro_enclaves/blobs``, or one above ``x86_64`` and ``aarch64``.
        architecture: The enclave's processor.
        stack: Closes the kernel's map.

    Raises:
        HostError: A file is missing.
    """
    if (directory / architecture).is_dir():
        directory /= architecture
    name = "bzImage" if architecture is Architecture.X86_64 else "Image"
    nsm, config = directory / "nsm.ko", directory / f"{name}.config"
    return Kernel(
        stack.enter_context(map_file(directory / name)),
        read_file(directory / "cmdline").decode("ascii", "surrogateescape").strip(),
        init=read_file(directory / "init"),
        nsm=read_file(nsm) if nsm.exists() else None,
        config=read_file(config).decode(errors="replace") if config.exists() else None,
    )


def read_package(
    paths: Path | Sequence[Path],
    architecture: Architecture,
    stack: ExitStack,
    *,
    modules: Sequence[str] = NEEDED_MODULES,
) -> Kernel:
    """Read a distribution's kernel packages, with the modules that are wanted and what these need.

    One package of Debian 12 or 13 (``linux-image-VERSION_ARCH.deb``) has all; newer ones and others are split
    (``linux-image`` and ``linux-modules``, ``kernel-core`` and ``kernel-modules``).

    Args:
        paths: Packages, or directories of them.
        architecture: The enclave's processor.
        stack: Closes maps and temporary files.
        modules: The modules that are wanted.

    Raises:
        EifFormatError: A package is malformed.
        UsageError: There is no kernel in them (``linux-image-amd64`` and the like only name one), or several.
        HostError: One cannot be read.
    """
    files = package_files([paths] if isinstance(paths, Path) else list(paths))
    named = ", ".join(str(path) for path in files)
    tree = unpack_packages(files, stack)
    kernels = _kernels(tree)
    if len(kernels) != 1:
        if kernels:
            raise UsageError(f"{named}: there are several kernels: {', '.join(sorted(kernels))}")
        raise UsageError(
            f"{named}: there is no kernel",
            hint="take the packages that these depend on: linux-image or linux-binary, or kernel-core",
        )
    ((version, kernel),) = kernels.items()
    root = _modules_root(tree, version)
    available = {
        module_name(name): name for name in tree.below(root) if re.search(r"\.ko(\.xz|\.zst|\.gz)?$", name)
    }
    loaded, missing = _closure(tree, available, modules, _built_in(tree, root), files[0])
    config = tree.get(f"boot/config-{version}") or tree.get(f"{root}/config")
    return Kernel(
        tree[kernel].data,
        CMDLINE if architecture is Architecture.X86_64 else CMDLINE_AARCH64,
        tuple(loaded),
        config=bytes(config.data).decode(errors="replace") if config is not None else None,
        missing=tuple(missing),
    )


def _kernels(tree: Tree) -> dict[str, str]:
    """Paths of kernels by their versions; one that is in both places counts once, and from /boot."""
    found: dict[str, str] = {}
    for root in _MODULES_ROOTS:
        for version in tree.names(root):
            path = f"{root}/{version}/vmlinuz"
            if path in tree and tree[path].data and not tree[path].is_symlink:
                found[version] = path
    for name in tree.names("boot"):
        path = f"boot/{name}"
        if name.startswith("vmlinu") and "-" in name and tree[path].data and not tree[path].is_symlink:
            found[name.partition("-")[2]] = path
    return found


def module_name(path: str) -> str:
    """A module's name from its path: files may have dashes where the name has underscores."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def module_dependencies(module: bytes) -> list[str]:
    """Read which modules a module needs from its ``.modinfo`` section (ELF-64, little-endian).

    Raises:
        EifFormatError: It is not such a file, or has no such section.
    """
    try:
        for name, offset, size in _elf_sections(module):
            if name == b".modinfo":
                data = module[offset : offset + min(size, _MODINFO_BYTES_MAX)]
                fields = [field.partition(b"=") for field in data.split(b"\0")]
                text = b",".join(value for key, _, value in fields if key == b"depends").decode("ascii")
                return [dependency.replace("-", "_") for dependency in text.split(",") if dependency]
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise EifFormatError(f"not a kernel module: {error}") from None
    raise EifFormatError("not a kernel module: it has no .modinfo section")


def _elf_sections(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and size of each section."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    table, entry_size, count, names_index = (
        *struct.unpack_from("<Q", data, 0x28),
        *struct.unpack_from("<HHH", data, 0x3A),
    )
    headers = [struct.unpack_from("<II16xQQ", data, table + index * entry_size) for index in range(count)]
    _, _, names_offset, names_size = headers[names_index]
    for name, _, offset, size in headers:
        # Not more of a name than counts: tens of thousands of sections may share a huge table of names.
        start = names_offset + name
        end = min(names_offset + names_size, start + _SECTION_NAME_BYTES_MAX)
        yield data[start:end].partition(b"\0")[0], offset, size


def _closure(
    tree: Tree, available: dict[str, str], wanted: Sequence[str], built_in: set[str], path: Path
) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Order modules so that each comes after those that it needs."""
    loaded: dict[str, bytes] = {}
    missing: dict[str, None] = {}
    visited: set[str] = set()
    left = ALL_MODULES_BYTES_MAX
    # A module is looked at twice: first for what it needs, which goes on top, and then to be loaded itself.
    pending: list[tuple[str, bytes | None]] = [(name.replace("-", "_"), None) for name in reversed(wanted)]
    while pending:
        name, data = pending.pop()
        if data is not None:
            loaded[name] = data
        elif name not in visited and name not in built_in:
            visited.add(name)
            if name not in available:
                missing[name] = None
                continue
            try:
                data = decompressed_module(tree[available[name]].data)
                left -= len(data)
                needs = module_dependencies(data)
            except EifFormatError as error:
                raise EifFormatError(
                    f"{available[name]}: {error.reason}", offset=error.offset, path=path
                ) from None
            if left < 0:
                message = f"the modules have more than {ALL_MODULES_BYTES_MAX} bytes"
                raise EifFormatError(message, path=path)
            pending.append((name, data))
            pending += [(need, None) for need in reversed(needs)]
    return list(loaded.items()), list(missing)


def decompressed_module(data: bytes | memoryview) -> bytes:
    """A module as the kernel takes it, uncompressed.

    Raises:
        EifFormatError: It is broken, or absurdly large.
    """
    name = compression_of(bytes(data[:6]))
    if name is None:
        return bytes(data)
    file = _Bounded()
    unpack(memoryview(data), name, file)
    return file.getvalue()


class _Bounded(io.BytesIO):
    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        if self.tell() + len(data) > MODULE_BYTES_MAX:
            raise EifFormatError(f"a module of more than {MODULE_BYTES_MAX} bytes")
        return super().write(data)


def _built_in(tree: Tree, root: str) -> set[str]:
    node = tree.get(f"{root}/modules.builtin")
    text = "" if node is None else bytes(node.data).decode(errors="replace")
    return {module_name(line) for line in text.split()}


def _modules_root(tree: Tree, version: str) -> str:
    roots = [f"{root}/{version}" for root in _MODULES_ROOTS]
    return next((root for root in roots if root in tree), roots[0])
