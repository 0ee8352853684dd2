"""Small files that ask for very much are refused in little time and memory.

Each case runs in a process of its own, whose processor time and peak memory count, with those of a bare start
taken off. The limits are far above what is needed, and far below what these files took once.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nitro_eif import Node, write_cpio
from nitro_eif.filesystem.compression import zstd_module
from nitro_eif.testing import example_ramdisk, tar_member, tar_of

CPU_S_MAX = 60.0
"""Of a slow machine; it takes a few seconds at most. What is not linear takes minutes."""
MEMORY_BYTES_MAX = 400 << 20

RUN = """
import resource, sys
from pathlib import Path
from nitro_eif import EifError, Tree, read_ramdisk, tree_of, read_rootfs
from nitro_eif.filesystem.tar import apply_tar
from nitro_eif.filesystem import compression
from nitro_eif.image.metadata import load_json
from nitro_eif.build.kernel_package import module_dependencies
from contextlib import ExitStack
before = resource.getrusage(resource.RUSAGE_SELF)
what, path, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
compression.UNPACKED_BYTES_MIN = limit
data = memoryview(path.read_bytes())
answer = "accepted"
try:
    match what:
        case "layer": apply_tar(Tree(), data)
        case "rootfs":
            with ExitStack() as stack: read_rootfs(path, stack)
        case "ramdisk": tree_of(read_ramdisk(data))
        case "list": sum(1 for _ in read_ramdisk(data))
        case "metadata": load_json(data)
        case "module": module_dependencies(bytes(data))
except EifError as error:
    answer = f"refused: {error}"
after = resource.getrusage(resource.RUSAGE_SELF)
cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(cpu_s, (after.ru_maxrss - before.ru_maxrss) << 10)
print(answer)
"""


def run(tmp_path: Path, what: str, data: bytes, limit: int = 64 << 20) -> tuple[float, int, str]:
    path = tmp_path / "hostile"
    path.write_bytes(data)
    command = [sys.executable, "-c", RUN, what, str(path), str(limit)]
    # Not traced, because tracing multiplies what is measured here.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    cost, _, answer = done.stdout.partition("\n")
    cpu_s, memory_bytes = cost.split()
    return float(cpu_s), int(memory_bytes), answer.strip()


def grows_evenly(tmp_path: Path, what: str, few: bytes, eightfold: bytes) -> bool:
    """Whether eight times as much takes less than 16 times as long; what is not linear takes 64 times.

    A machine may be several times slower for a moment, but not each time.
    """
    return any(run(tmp_path, what, eightfold)[0] < 16 * run(tmp_path, what, few)[0] for _ in range(10))


def deep_name(levels: int) -> bytes:
    return tar_of([(tar_member("d/" * levels + "f"), b"")])


def deep_link(levels: int) -> bytes:
    return tar_of([(tar_member("f", kind=tarfile.SYMTYPE, target="d/" * levels), b"")])


def many_deep_names() -> bytes:
    return tar_of([(tar_member(f"{number:04d}/" + "d/" * 2000 + "f"), b"") for number in range(2000)])


def link_chains() -> bytes:
    members = [(tar_member("d", kind=tarfile.DIRTYPE), b"")]
    target = "d/../" * 400
    members.append((tar_member("l0", kind=tarfile.SYMTYPE, target=target + "d"), b""))
    members += [
        (tar_member(f"l{n}", kind=tarfile.SYMTYPE, target=f"{target}l{n - 1}"), b"") for n in range(1, 39)
    ]
    members += [(tar_member(f"l38/{number}"), b"") for number in range(6_000)]
    return tar_of(members)


def sparse_files() -> bytes:
    pax = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(900 << 20), "GNU.sparse.major": "0"}
    return tar_of(
        [(tar_member(f"s{number}", pax=pax | {"GNU.sparse.name": f"s{number}"}), b"") for number in range(20)]
    )


def huge_header() -> bytes:
    member = tar_member("f", pax={"comment": "x" * (300 << 20)})
    return gzip.compress(tar_of([(member, b"")]), 1)


def global_headers() -> bytes:
    file = io.BytesIO()
    headers = {f"k{number}": "v" for number in range(5000)}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
        for number in range(5000):
            tar.addfile(tarfile.TarInfo(str(number)))
    return file.getvalue()


def many_members() -> bytes:
    one = tar_of([(tar_member("f"), b"")])[:512]
    return one * 60_000 + bytes(1024)


def opaque_markers() -> bytes:
    members = [(tar_member("d/" * depth + ".wh..wh..opq"), b"") for depth in range(1, 1500)]
    return tar_of([*members, *((tar_member(f"d/f{number}"), b"") for number in range(3000))])


CASES: list[tuple[str, str, Callable[[], bytes], str]] = [
    ("a name of 20,000 levels", "layer", lambda: deep_name(20_000), "refused"),
    ("a name of 200,000 levels", "layer", lambda: deep_name(200_000), "refused"),
    ("a link of 200,000 levels", "layer", lambda: deep_link(200_000), "refused"),
    ("many deep names", "layer", many_deep_names, "refused"),
    ("chains of links", "layer", link_chains, "refused"),
    ("sparse files", "layer", sparse_files, "refused"),
    ("a huge extended header", "rootfs", huge_header, "refused"),
    ("global headers for each member", "layer", global_headers, "refused"),
    ("many members", "layer", many_members, "accepted"),
    ("opaque markers at each level", "layer", opaque_markers, "accepted"),
    ("empty gzip streams", "ramdisk", lambda: gzip.compress(b"") * 100_000, "accepted"),
    ("empty gzip streams of an archive", "rootfs", lambda: gzip.compress(b"") * 100_000, "refused"),
    ("gzip", "ramdisk", lambda: gzip.compress(bytes(200 << 20)), "refused"),
    ("many gzip streams", "ramdisk", lambda: gzip.compress(bytes(1 << 20)) * 500, "refused"),
    ("many bzip2 streams", "ramdisk", lambda: bz2.compress(bytes(8 << 20)) * 60, "refused"),
    ("many xz streams", "ramdisk", lambda: lzma.compress(bytes(8 << 20)) * 60, "refused"),
    ("many zstd streams", "ramdisk", lambda: zstd_module().compress(bytes(8 << 20)) * 60, "refused"),
    (
        "many zstd streams of an archive",
        "rootfs",
        lambda: zstd_module().compress(bytes(8 << 20)) * 60,
        "refused",
    ),
    ("deep metadata", "metadata", lambda: b"[" * 3_000_000, "refused"),
    ("wide metadata", "metadata", lambda: b"[" + b"[]," * 1_300_000 + b"[]]", "refused"),
    ("long metadata", "metadata", lambda: json.dumps("x" * (5 << 20)).encode(), "refused"),
]


@pytest.mark.parametrize(
    ("what", "make", "answer"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_small_file_costs_little(tmp_path: Path, what: str, make: Callable[[], bytes], answer: str) -> None:
    cpu_s, memory_bytes, said = run(tmp_path, what, make())

    assert said.startswith(answer)
    assert cpu_s < CPU_S_MAX
    assert memory_bytes < MEMORY_BYTES_MAX


def test_an_elf_of_many_sections_costs_little(tmp_path: Path) -> None:
    names = bytes(1) + b"x" * (4 << 20)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    table = 64 + len(names)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 65535, 1)
    section = struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, 64, len(names), 0, 0, 1, 0)

    cpu_s, memory_bytes, said = run(tmp_path, "module", header + names + section * 65535)

    assert said.startswith("refused: not a kernel module")
    assert cpu_s < CPU_S_MAX
    assert memory_bytes < MEMORY_BYTES_MAX


def test_time_grows_with_the_number_of_streams_and_not_faster(tmp_path: Path) -> None:
    archive = gzip.compress(example_ramdisk({"a": Node.file(b"")}))

    assert grows_evenly(tmp_path, "list", archive * 1_000, archive * 8_000)


def test_time_grows_with_the_number_of_entries_and_not_faster(tmp_path: Path) -> None:
    def archive(count: int) -> bytes:
        file = io.BytesIO()
        write_cpio(file, ((f"{number}", Node.file(b"")) for number in range(count)))
        return file.getvalue()

    assert grows_evenly(tmp_path, "ramdisk", archive(2_000), archive(16_000))
