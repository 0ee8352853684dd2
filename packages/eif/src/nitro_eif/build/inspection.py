"""What will be run in an enclave, looked at before it is built: is it there, and can this processor run it.

Nothing here stops a build, because only files are looked at: an application may know better.
"""

import posixpath
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from nitro_eif.architecture import Architecture
from nitro_eif.build.application import DEFAULT_PATH, Launch
from nitro_eif.filesystem.cpio import Node
from nitro_eif.filesystem.tree import Tree, short

OFFERED_LEVEL: Final = 2
"""The level of x86-64 that `vmm run` emulates (x86-64 psABI, "Micro-Architecture Levels")."""

_SCRIPTS_MAX: Final = 5
"""How many scripts may be each other's interpreters, before a program is (Linux's fs/exec.c, exec_binprm)."""
_HEAD_BYTES: Final = 1 << 20
"""How much of a program is looked at; headers, names of loaders and notes stand at its beginning."""

_MACHINES: Final = {62: Architecture.X86_64, 183: Architecture.AARCH64}
_MACHINE_NAMES: Final = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
_PT_INTERP: Final = 3
_PT_NOTE: Final = 4
_NT_GNU_PROPERTY_TYPE_0: Final = 5
_X86_ISA_1_NEEDED: Final = 0xC0008002
"""Bits 0 to 3: the program needs the baseline, x86-64-v2, v3, v4 (x86-64 psABI, "Program Property")."""

_BASELINE: Final = 1
"""The level of x86-64 that every processor has."""

_DISTRIBUTION_LEVELS: Final = {
    ("rhel", "9"): 2,
    ("centos", "9"): 2,
    ("almalinux", "9"): 2,
    ("rocky", "9"): 2,
    ("ol", "9"): 2,
    ("rhel", "10"): 3,
    ("centos", "10"): 3,
    ("rocky", "10"): 3,
    ("ol", "10"): 3,
    ("opensuse-leap", "16"): 2,
    ("sles", "16"): 2,
}
"""What distributions are built for, by ID and major VERSION_ID of os-release(5)."""


@dataclass(frozen=True, slots=True)
class _Program:
    """What an ELF file says of itself."""

    machine: int
    interpreter: str = ""
    level: int = _BASELINE
    """Of x86-64."""


def concerns(tree: Tree, launch: Launch, architecture: Architecture) -> Iterator[str]:
    """What speaks against an application, in sentences; nothing if all seems well.

    Args:
        tree: The application's files.
        launch: How it is started.
        architecture: The enclave's processor.
    """
    yield from _command(tree, launch, architecture)
    if architecture is Architecture.X86_64:
        yield from _distribution(tree)


def lacks_init(ramdisks: list[Tree]) -> bool:
    """Whether no ramdisk has the ``/init`` that Linux runs where the command line has no ``rdinit=``."""
    return not any(tree.resolve("init") for tree in ramdisks)


def _command(tree: Tree, launch: Launch, architecture: Architecture) -> Iterator[str]:
    command = launch.arguments[0]
    found = _find(tree, launch)
    if found is None:
        yield f"the command {command!r} is not in the image"
        return
    for _ in range(_SCRIPTS_MAX + 1):
        path, node = found
        if not node.mode & 0o111:
            yield f"/{path} is not executable: its mode is {node.mode & 0o7777:04o}"
        head = bytes(memoryview(node.data)[:_HEAD_BYTES])
        if head.startswith(b"\x7fELF"):
            yield from _elf(tree, path, head, architecture)
            return
        if not head.startswith(b"#!"):
            yield f"/{path} is neither an ELF program nor a script that begins with #!"
            return
        words = head[2:].partition(b"\n")[0].split()
        interpreter = words[0].decode(errors="replace") if words else ""
        real = tree.resolve(interpreter) if interpreter else None
        if real is None or tree[real].is_directory:
            yield f"/{path} wants {interpreter or 'no interpreter'}, which is not in the image"
            return
        found = real, tree[real]
    yield f"{command!r} is a script that takes more than {_SCRIPTS_MAX} interpreters, one for the other"


def _find(tree: Tree, launch: Launch) -> tuple[str, Node] | None:
    command = launch.arguments[0]
    if not command:
        return None
    environment = dict(assignment.partition("=")[::2] for assignment in launch.environment)
    if "/" in command:
        places = [posixpath.join(launch.workdir, command)]
    else:
        search = environment.get("PATH", DEFAULT_PATH).split(":")
        places = [posixpath.join(launch.workdir, directory, command) for directory in search]
    for place in places:
        real = tree.resolve(place)
        if real and not tree[real].is_directory:
            return real, tree[real]
    return None


def _elf(tree: Tree, path: str, head: bytes, architecture: Architecture) -> Iterator[str]:
    try:
        program = _program(head)
    except (struct.error, ValueError):
        yield f"/{path} is a broken ELF program"
        return
    if _MACHINES.get(program.machine) is not architecture:
        machine = _MACHINE_NAMES.get(program.machine, f"machine {program.machine}")
        yield f"/{path} is for {machine}, and the image for {architecture}"
        return
    if program.interpreter and tree.resolve(program.interpreter) is None:
        yield f"/{path} wants {program.interpreter}, which is not in the image"
    if program.level > OFFERED_LEVEL:
        yield f"/{path} needs x86-64-v{program.level}, and vmm run offers x86-64-v{OFFERED_LEVEL}"


def _program(head: bytes) -> _Program:
    bits, order = struct.unpack_from("<BB", head, 4)
    (machine,) = struct.unpack_from("<H" if order == 1 else ">H", head, 18)
    if bits != 2 or order != 1:
        return _Program(machine)
    (table,) = struct.unpack_from("<Q", head, 0x20)
    size, count = struct.unpack_from("<HH", head, 0x36)
    interpreter, level = "", _BASELINE
    for index in range(count):
        kind, offset, length = struct.unpack_from("<I4xQ16xQ", head, table + index * size)
        data = head[offset : offset + length]
        if kind == _PT_INTERP:
            interpreter = data.partition(b"\0")[0].decode(errors="replace")
        elif kind == _PT_NOTE and machine == 62:
            with suppress(struct.error):
                level = max(level, _level(data))
    return _Program(machine, interpreter, level)


def _level(notes: bytes) -> int:
    """The level that GNU properties among the notes of a segment ask for; 0 if none of them is set.

    Raises:
        struct.error: The notes are cut off before they say.
    """
    at = 0
    while at < len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        start = at + 12 + -(-name_size // 4) * 4
        if kind == _NT_GNU_PROPERTY_TYPE_0 and notes[at + 12 : at + 16] == b"GNU\0":
            end = min(start + size, len(notes))
            while start < end:
                property_type, property_size = struct.unpack_from("<II", notes, start)
                if property_type == _X86_ISA_1_NEEDED and property_size >= 4:
                    needed = int.from_bytes(notes[start + 8 : start + 12], "little")
                    return needed.bit_length()
                start += 8 + -(-property_size // 8) * 8
            return _BASELINE
        at = start + -(-size // 4) * 4
    return _BASELINE


def _distribution(tree: Tree) -> Iterator[str]:
    for path in ("etc/os-release", "usr/lib/os-release"):
        real = tree.resolve(path)
        if real is None or tree[real].is_directory:
            continue
        text = bytes(memoryview(tree[real].data)[:65536]).decode(errors="replace")
        facts = dict(line.partition("=")[::2] for line in text.splitlines())
        name, version = (facts.get(key, "").strip("\"'") for key in ("ID", "VERSION_ID"))
        level = _DISTRIBUTION_LEVELS.get((name, version.partition(".")[0]), _BASELINE)
        if level > OFFERED_LEVEL:
            offered = f"vmm run offers x86-64-v{OFFERED_LEVEL}"
            yield f"{short(name)} {version} is built for x86-64-v{level}, and {offered}"
        return
