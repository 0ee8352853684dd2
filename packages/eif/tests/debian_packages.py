"""Kernel packages of distributions, and kernel modules, made on the spot."""

import gzip
import lzma
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from containers import zstd
from nitro_eif import Node
from nitro_eif.testing import example_ramdisk, tar_member, tar_of

VERSION = "6.12.1-cloud-amd64"
KERNEL = bytes(0x202) + b"HdrS the kernel"
CONFIG = b"#\n# Automatically generated file; DO NOT EDIT.\n# Linux/x86 6.12.1 Kernel Configuration\n#\n"


def module(*needs: str) -> bytes:
    """A relocatable ELF file with nothing but a .modinfo section."""
    modinfo = b"license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(modinfo) + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = bytes(64)
    for name, offset, size in ((1, 64, len(modinfo)), (10, 64 + len(modinfo), len(names))):
        sections += struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)
    return header + modinfo + names + sections


def package(
    path: Path, modules: dict[str, bytes], *, builtin: str = "", how: str = "xz", root: str = "usr/"
) -> Path:
    """Write a package with these modules, paths below the kernel directory."""
    top = f"./{root}lib/modules/{VERSION}"
    files = {
        f"./boot/vmlinuz-{VERSION}": KERNEL,
        f"./boot/config-{VERSION}": CONFIG,
        f"{top}/modules.builtin": builtin.encode(),
        **{f"{top}/kernel/{name}": data for name, data in modules.items()},
    }
    data = tar_of([(tar_member(name), data) for name, data in files.items()])
    pack: Any = {"xz": lzma.compress, "zst": zstd}[how]
    path.write_bytes(ar({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{how}": pack(data)}))
    return path


def ar(members: dict[str, bytes]) -> bytes:
    """An ar archive as deb(5) wants it."""
    archive = b"!<arch>\n"
    for name, data in members.items():
        archive += b"%-16s%-12d%-6d%-6d%-8o%-10d`\n" % (name.encode(), 0, 0, 0, 0o100644, len(data))
        archive += data + b"\n" * (len(data) % 2)
    return archive


def directory_only(path: Path) -> Path:
    """Write a package that only depends on one with a kernel."""
    data = tar_of([(tar_member("./usr/share/doc", kind=tarfile.DIRTYPE), b"")])
    path.write_bytes(ar({"debian-binary": b"2.0\n", "data.tar.xz": lzma.compress(data)}))
    return path


def deb(files: dict[str, bytes]) -> bytes:
    """A Debian package with these files."""
    data = tar_of([(tar_member(f"./{name}"), content) for name, content in files.items()])
    return ar({"debian-binary": b"2.0\n", "data.tar.xz": lzma.compress(data)})


def rpm(files: dict[str, bytes], how: str = "zstd") -> bytes:
    """An RPM with these files, whose headers have an entry each."""
    archive = example_ramdisk({f"./{name}": Node.file(content) for name, content in files.items()})
    pack: Any = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd, "none": bytes}[how]
    lead = b"\xed\xab\xee\xdb\x03\x00" + bytes(90)
    signature = rpm_header(b"12345")
    return lead + signature + bytes(-len(signature) % 8) + rpm_header(b"123") + bytes(pack(archive))


def built_rpm(directory: Path, files: dict[str, bytes], payload: str) -> Path:
    """An RPM with these files, made by rpmbuild.

    Args:
        directory: An empty one to work in.
        files: By their paths.
        payload: How it is packed, as RPM's macro `_binary_payload` says it.
    """
    sources = directory / "sources"
    for name, content in files.items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_bytes(content)
    spec = directory / "kernel.spec"
    spec.write_text(
        "Name: kernel-core\nVersion: 1\nRelease: 1\nSummary: A kernel\nLicense: MIT\nBuildArch: noarch\n"
        f"%description\nA kernel.\n%install\ncp -r {sources}/. %{{buildroot}}\n"
        f"%files\n{''.join(f'/{name}{chr(10)}' for name in files)}"
    )
    macros = {"_topdir": directory / "top", "_binary_payload": payload, "__os_install_post": "%{nil}"}
    defined = [argument for key, value in macros.items() for argument in ("--define", f"{key} {value}")]
    subprocess.run(["rpmbuild", "-bb", "--quiet", *defined, spec], check=True)
    return next(directory.glob("top/RPMS/noarch/*.rpm"))


def rpm_header(store: bytes) -> bytes:
    return b"\x8e\xad\xe8\x01" + bytes(4) + struct.pack(">II", 1, len(store)) + bytes(16) + store
