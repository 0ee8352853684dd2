"""What speaks against an application is said when its image is built."""

import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from debian_packages import KERNEL
from nitro_eif import Architecture, Launch, Node, Tree
from nitro_eif.build.inspection import OFFERED_LEVEL, concerns
from nitro_eif.cli import main
from nitro_eif.testing import example_ramdisk

LOADER = "/lib64/ld-linux-x86-64.so.2"
X86_64, AARCH64, I386 = 62, 183, 3


def note(name: bytes, kind: int, data: bytes) -> bytes:
    """An ELF note, both of its parts with zeros up to a multiple of four."""
    parts = (part + bytes(-len(part) % 4) for part in (name, data))
    return struct.pack("<III", len(name), len(data), kind) + b"".join(parts)


def fact(kind: int, data: bytes) -> bytes:
    """A GNU property, with zeros up to a multiple of eight."""
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def need(levels: int) -> bytes:
    """The property that says which levels of x86-64 a program needs."""
    return fact(0xC0008002, struct.pack("<I", levels))


def elf(
    machine: int = X86_64, *, loader: str = "", needed: int = 0, bits: int = 2, notes: bytes = b""
) -> bytes:
    """A program with nothing but headers, the name of a loader, and a note of what it needs."""
    if needed:
        notes = note(b"abc\0", 1, b"") + note(b"GNU\0", 5, need(needed))
    name = loader.encode() + b"\0" if loader else b""
    segments = [(kind, data) for kind, data in ((3, name), (4, notes)) if data]
    head = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    at = 64 + 56 * len(segments)
    table, body = b"", b""
    for kind, data in segments:
        table += struct.pack("<IIQQQQQQ", kind, 4, at + len(body), 0, 0, len(data), len(data), 8)
        body += data
    return head + table + body


BIG_ENDIAN = b"\x7fELF\2\2\1" + bytes(9) + struct.pack(">HHI", 2, 22, 1)


def tree_of_files(**files: Node) -> Tree:
    tree = Tree()
    for path, node in files.items():
        tree.add(path.replace("__", "/"), node)
    return tree


def said(tree: Tree, *arguments: str, path: str = "/bin", workdir: str = "/") -> list[str]:
    launch = Launch(arguments or ("app",), (f"PATH={path}",), workdir)
    return list(concerns(tree, launch, Architecture.X86_64))


def program(data: bytes, mode: int = 0o755) -> Node:
    return Node.file(data, mode)


def test_a_program_that_can_run_is_no_concern() -> None:
    tree = tree_of_files(bin__app=program(elf(loader=LOADER)), lib64__x=program(b""))
    tree.add("usr/lib/ld.so", program(elf()))
    tree.add(LOADER[1:], Node.symlink("../usr/lib/ld.so"))
    tree.add("script", program(b"#! /bin/app -x\n"))

    assert said(tree) == []
    assert said(tree, "/bin/app") == []
    assert said(tree, "bin/app") == []
    assert said(tree, "app", path="/none:/bin") == []
    assert said(tree, "./app", workdir="/bin") == []
    assert said(tree, "/script") == []


@pytest.mark.parametrize("command", ["gone", "/bin/gone", "./app", "bin", "/bin", ""])
def test_a_missing_command_is_named(command: str) -> None:
    tree = tree_of_files(bin__app=program(elf()))

    assert said(tree, command) == [f"the command {command!r} is not in the image"]


@pytest.mark.parametrize(
    ("node", "concern"),
    [
        (program(elf(loader=LOADER)), f"/bin/app wants {LOADER}, which is not in the image"),
        (program(b"#!/usr/bin/env python3\n"), "/bin/app wants /usr/bin/env, which is not in the image"),
        (program(b"#!\n"), "/bin/app wants no interpreter, which is not in the image"),
        (program(elf(), 0o644), "/bin/app is not executable: its mode is 0644"),
        (program(elf(AARCH64)), "/bin/app is for aarch64, and the image for x86_64"),
        (program(elf(I386, bits=1)), "/bin/app is for i386, and the image for x86_64"),
        (program(elf(I386, bits=1)[:52]), "/bin/app is for i386, and the image for x86_64"),
        (program(elf(40)), "/bin/app is for arm, and the image for x86_64"),
        (program(elf(243)), "/bin/app is for riscv, and the image for x86_64"),
        (program(elf(99)), "/bin/app is for machine 99, and the image for x86_64"),
        (program(BIG_ENDIAN), "/bin/app is for machine 22, and the image for x86_64"),
        (program(b"text"), "/bin/app is neither an ELF program nor a script that begins with #!"),
        (program(elf()[:40]), "/bin/app is a broken ELF program"),
        (program(elf(needed=0b111)), "/bin/app needs x86-64-v3, and vmm run offers x86-64-v2"),
        (program(elf(needed=0b1000)), "/bin/app needs x86-64-v4, and vmm run offers x86-64-v2"),
        (program(elf(needed=0b11)), None),
        (program(elf(needed=0b1)), None),
    ],
)
def test_what_is_wrong_with_a_command_is_said(node: Node, concern: str | None) -> None:
    assert said(tree_of_files(bin__app=node)) == ([] if concern is None else [concern])


def test_all_that_is_wrong_with_a_program_is_said() -> None:
    assert said(tree_of_files(bin__app=program(elf(loader=LOADER, needed=0b111)))) == [
        f"/bin/app wants {LOADER}, which is not in the image",
        "/bin/app needs x86-64-v3, and vmm run offers x86-64-v2",
    ]


def test_interpreters_of_scripts_are_looked_at_too() -> None:
    tree = tree_of_files(bin__app=program(b"#!/bin/sh\n"), bin__sh=program(elf(loader=LOADER)))

    assert said(tree) == [f"/bin/sh wants {LOADER}, which is not in the image"]


def chain(scripts: int) -> Tree:
    """An application behind so many scripts, each of which is the interpreter of the one before."""
    names = ["bin__app", *(f"bin__s{number}" for number in range(1, scripts))]
    targets = [*names[1:], "bin__program"]
    files = {
        name: program(f"#!/{target.replace('__', '/')}\n".encode())
        for name, target in zip(names, targets, strict=True)
    }
    return tree_of_files(**files, bin__program=program(elf(loader=LOADER)))


def test_the_program_behind_as_many_scripts_as_linux_runs_is_looked_at() -> None:
    assert said(chain(5)) == [f"/bin/program wants {LOADER}, which is not in the image"]


@pytest.mark.parametrize("tree", [chain(6), tree_of_files(bin__app=program(b"#!/bin/app\n"))])
def test_more_scripts_than_linux_runs_are_refused_as_it_refuses_them(tree: Tree) -> None:
    assert said(tree) == ["'app' is a script that takes more than 5 interpreters, one for the other"]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ('ID="rocky"\nVERSION_ID="10.1"\n', 3),
        ("ID=centos\nVERSION_ID=10\n", 3),
        ("ID=rhel\nVERSION_ID=9.4\n", None),
        ("ID=debian\nVERSION_ID=12\n", None),
        *((f"ID={name}\nVERSION_ID=10\n", 3) for name in ("rhel", "centos", "rocky", "ol")),
        *((f"ID={name}\nVERSION_ID=9\n", None) for name in ("rhel", "centos", "rocky", "ol", "almalinux")),
        *((f"ID={name}\nVERSION_ID=16.0\n", None) for name in ("sles", "opensuse-leap")),
        ("nonsense", None),
    ],
)
def test_a_distribution_for_newer_processors_is_named(text: str, level: int | None) -> None:
    tree = tree_of_files(bin__app=program(elf()))
    tree.add("usr/lib/os-release", Node.file(text.encode()))
    tree.add("etc/os-release", Node.symlink("../usr/lib/os-release"))

    found = said(tree)

    assert len(found) == (0 if level is None else 1)
    assert level is None or f"is built for x86-64-v{level}, and vmm run offers" in found[0]
    assert OFFERED_LEVEL == 2


@pytest.mark.parametrize(("end", "count"), [(65536, 1), (65537, 0)])
def test_of_a_distributions_name_64_kibibytes_are_read(end: int, count: int) -> None:
    name = "\nID=rocky\nVERSION_ID=10"
    tree = tree_of_files(bin__app=program(elf()))
    tree.add("etc/os-release", Node.file(name.rjust(end, "#").encode()))

    assert len(said(tree)) == count


def test_only_notes_of_programs_for_x86_64_say_what_they_need() -> None:
    foreign = tree_of_files(bin__app=program(elf(AARCH64, needed=0b111)))
    not_a_note = elf(needed=0b111)
    table = 64
    not_a_note = not_a_note[:table] + struct.pack("<I", 1) + not_a_note[table + 4 :]

    assert list(concerns(foreign, Launch(("/bin/app",)), Architecture.AARCH64)) == []
    assert said(tree_of_files(bin__app=program(not_a_note))) == []


@pytest.mark.parametrize(
    ("notes", "level"),
    [
        (note(b"GNU\0", 5, need(0b111)), 3),
        (note(b"Linux\0", 1, b"12345") + note(b"GNU\0", 5, need(0b111)), 3),
        (note(b"Core\0", 1, b"123456789") + note(b"GNU\0", 5, need(0b111)), 3),
        (note(b"GNU\0", 1, bytes(16)) + note(b"GNU\0", 5, need(0b111)), 3),
        (note(b"GNU\0", 5, fact(0xC0000002, b"\3\0\0\0") + need(0b1111)), 4),
        (note(b"GNU\0", 5, fact(1, b"") + fact(2, b"12345678") + need(0b111)), 3),
        (note(b"GNU\0", 5, fact(1, b"123456789") + need(0b111)), 3),
        (note(b"GNU\0", 5, need(0b111)[:12]), 3),
        (note(b"GNU\0", 5, fact(0xC0008002, b"\7\0\0\0\xff\xff\xff\xff")), 3),
        (note(b"GNU\0", 5, fact(0xC0008002, b"\7\0\0")), None),
        (note(b"GNU\0", 5, need(0)), None),
        (note(b"GNU\0", 5, fact(0xC0008001, b"\7\0\0\0")), None),
        (note(b"GNU\0", 5, b"") + need(0b111), None),
        (note(b"XNU\0", 5, need(0b111)), None),
        (note(b"GNU\0", 4, need(0b111)), None),
        (note(b"", 0, b""), None),
    ],
)
def test_what_a_program_needs_is_found_among_its_notes(notes: bytes, level: int | None) -> None:
    found = said(tree_of_files(bin__app=program(elf(notes=notes))))

    assert found == (
        [] if level is None else [f"/bin/app needs x86-64-v{level}, and vmm run offers x86-64-v2"]
    )


def test_images_for_aarch64_want_programs_for_aarch64() -> None:
    launch = Launch(("/bin/app",))

    for machine, count in ((AARCH64, 0), (X86_64, 1)):
        tree = tree_of_files(bin__app=program(elf(machine)))
        found = list(concerns(tree, launch, Architecture.AARCH64))
        assert found == ["/bin/app is for x86_64, and the image for aarch64"] * count


@given(
    st.binary(max_size=200) | st.integers(0, 250).map(lambda at: elf(loader=LOADER, needed=7)[:at] + b"\xff")
)
@example(b"\x7fELF")
@example(b"#!")
def test_any_bytes_are_a_program_or_a_concern(data: bytes) -> None:
    assert all(isinstance(text, str) for text in said(tree_of_files(bin__app=program(data))))


def test_building_says_what_is_of_concern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kernel").write_bytes(KERNEL)
    root = tmp_path / "root"
    root.mkdir()

    code = main(
        [
            *("build", "--rootfs", str(root), "--cmd", "/bin/app", "--kernel", str(tmp_path / "kernel")),
            *("--output", str(tmp_path / "x.eif")),
        ]
    )

    assert code == 0
    assert "eif: warning: the command '/bin/app' is not in the image\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "cmdline", "warned"),
    [
        ({"init": Node.file(b"#!", 0o755)}, "quiet", False),
        ({"app": Node.file(b"#!", 0o755)}, "quiet", True),
        ({"app": Node.file(b"#!", 0o755)}, "quiet rdinit=/app", False),
    ],
)
def test_a_ramdisk_without_init_is_a_warning(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, Node],
    cmdline: str,
    warned: object,
) -> None:
    (tmp_path / "kernel").write_bytes(KERNEL)
    (tmp_path / "ramdisk").write_bytes(example_ramdisk(files))

    arguments = ["--kernel", str(tmp_path / "kernel"), "--ramdisk", str(tmp_path / "ramdisk")]
    assert main(["build", *arguments, "--cmdline", cmdline, "--output", str(tmp_path / "x.eif")]) == 0

    assert ("no ramdisk has an /init" in capsys.readouterr().err) is warned
