"""``eif extract``: an image's sections as files, or a list of the files in its ramdisks."""

import argparse
import stat
from pathlib import Path

from nitro_eif.commands.options import add_json
from nitro_eif.commands.terminal import print_json, printable, size, story
from nitro_eif.disassembly import extract, rebuilds_exactly
from nitro_eif.errors import EifFormatError, UsageError
from nitro_eif.filesystem.cpio import Entry
from nitro_eif.filesystem.ramdisk import read_ramdisk
from nitro_eif.image.reader import Eif

EXAMPLES = ("eif extract hello.eif --output parts", "eif extract hello.eif --tree")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to its parser."""
    parser.add_argument("image", metavar="EIF")
    parser.add_argument("--output", metavar="DIR", help="where to; must be empty or not exist")
    parser.add_argument("--tree", action="store_true", help="list the ramdisks' files instead")
    parser.add_argument("--ramdisk", metavar="N", type=int, help="with --tree: only this one, from 0")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Extract, or list with ``--tree``."""
    with Eif.open(options.image, salvage=True) as eif:
        for finding in eif.findings:
            story(f"eif: {options.image}: {finding.message} (byte {finding.offset:#x})")
        if options.tree:
            return _list(eif, options)
        if not options.output:
            raise UsageError("say where to with --output DIR, or list files with --tree")
        files: list[dict[str, object]] = []

        def note(path: Path, count: int) -> None:
            files.append({"File": str(path), "Bytes": count})
            if not options.json:
                print(f"{path}  {size(count)}")

        extract(eif, Path(options.output), written=note)
        exact = rebuilds_exactly(eif)
        if options.json:
            print_json({"Files": files, "RebuildsExactly": exact})
        elif not exact:
            story("eif: the image has bytes that belong to no section: eif assemble will not give them again")
        return 3 if eif.findings else 0


def _list(eif: Eif, options: argparse.Namespace) -> int:
    ramdisks = eif.ramdisks
    if options.ramdisk is not None and not 0 <= options.ramdisk < len(ramdisks):
        raise UsageError(f"there is no ramdisk {options.ramdisk}; the image has {len(ramdisks)}, from 0")
    rows = []
    for index, ramdisk in enumerate(ramdisks):
        if options.ramdisk not in {None, index}:
            continue
        try:
            for entry in read_ramdisk(ramdisk):
                if options.json:
                    rows.append(_as_json(index, entry))
                else:
                    print(_line(index, entry))
        except EifFormatError as error:
            raise EifFormatError(
                f"ramdisk {index}: {error.reason}", offset=error.offset, path=eif.path, hint=error.hint
            ) from None
    if options.json:
        print_json(rows)
    return 0


def _as_json(index: int, entry: Entry) -> dict[str, object]:
    node = entry.node
    return {
        "Ramdisk": index,
        "Path": entry.path.encode("utf-8", "surrogateescape").decode(errors="backslashreplace"),
        "Mode": f"{node.mode:06o}",
        "Uid": node.uid,
        "Gid": node.gid,
        "Bytes": len(node.data),
        "Target": node.target if node.is_symlink else None,
    }


def _line(index: int, entry: Entry) -> str:
    node = entry.node
    is_device = stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
    extent = f"{node.device[0]},{node.device[1]}" if is_device else str(len(node.data))
    target = f" -> {printable(node.target)}" if node.is_symlink else ""
    owner = f"{node.uid}:{node.gid}"
    return f"{index}  {stat.filemode(node.mode)}  {owner:>9}  {extent:>10}  {printable(entry.path)}{target}"
