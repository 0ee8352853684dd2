"""Programs that emulators get wrong, in an enclave of Debian's kernel: all in one boot.

What instructions compute is `test_isa.py`'s; here is what takes a kernel and ordinary programs: code written
through a second mapping, single steps, 32-bit programs, ports, and signals for what the processor refuses.
The programs of ``shared/vectors/isa`` lie beside the repository; where they are absent, they are skipped.
"""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

import images
import selftests
from debian import DebianError
from nitro_eif import BuildMetadata, Contents, Metadata, Node, write_cpio, write_eif

pytestmark = pytest.mark.slow

VECTORS = images.ROOT.parent / "shared" / "vectors" / "isa"
OURS = Path(__file__).parent / "guest" / "processor"
COMPILE = ("gcc", "-w", "-O1", "-static")
BARE = ("-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector", "-mno-red-zone")
TINY = "bin/tiny"
"""Where exec-storm.c expects tiny.s, of which it writes changed copies."""
MEMORY_MIB, TIMEOUT_S = 256, 300
KILLED_BY_SIGILL, KILLED_BY_SIGSEGV = 128 + 4, 128 + 11
END_OF_SEARCHES = """\
quick        at 4
fox          at 16
brown fox    at 10
jumps over   at 20
lazy dog     at 35
runs         at 48
away.        at 53
cat          at -1"""


class Program(NamedTuple):
    """A program, and how it must end."""

    source: Path
    flags: tuple[str, ...] = ()
    said: str = ""
    """All that it prints; a part of it, if it may also print what differs from machine to machine."""
    code: int = 0


PROGRAMS: Mapping[str, Program] = {
    "substring": Program(VECTORS / "sse42-substring.c", ("-msse4.2",), END_OF_SEARCHES),
    "vex": Program(
        VECTORS / "avx-silently-wrong.c",
        said="vaddps xmm, 3 operands       signal 4",
    ),
    "bmi": Program(VECTORS / "bmi.c", ("-mbmi", "-mbmi2"), code=KILLED_BY_SIGILL),
    "flags": Program(
        VECTORS / "fp-exceptions.c",
        ("-lm",),
        "1/0: FE_DIVBYZERO set\n1e308^2: FE_OVERFLOW set\n0/0: FE_INVALID set\n1/3: FE_INEXACT set",
    ),
    "misaligned": Program(VECTORS / "sse-misaligned.c", said="fault, as it must be: signal 11"),
    "mappings": Program(
        VECTORS / "dual-mapped-code.c",
        said="dual mapped JIT: 0 of 1000 wrong\nrwx JIT: 0 of 1000 wrong\nmprotect JIT: 0 of 200 wrong",
    ),
    "execs": Program(VECTORS / "exec-storm.c", said="exec storm: 0 of 300 wrong"),
    "avx": Program(OURS / "avx.c", code=KILLED_BY_SIGILL),
    "ports": Program(OURS / "ports.c", code=KILLED_BY_SIGSEGV),
    "unmasked": Program(OURS / "unmasked.c", ("-D_GNU_SOURCE", "-lm"), "long double: 1, loaded: 1"),
    "stepping64": Program(OURS / "stepping.c", BARE, "stepped"),
    "stepping32": Program(OURS / "stepping.c", (*BARE, "-m32"), "stepped"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, selftests.Outcome]:
    """How each program ended that could be built."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no C compiler; Debian's package is gcc")
    directory = tmp_path_factory.mktemp("programs")
    built = {name: program for name, program in PROGRAMS.items() if program.source.exists()}
    nodes = {
        "bin": Node.directory(0o755),
        "init": Node.file((OURS / "init.sh").read_bytes(), 0o755),
        "tests": Node.directory(0o755),
    }
    for name, program in built.items():
        nodes[f"tests/{name}"] = compiled(directory / name, program.source, program.flags)
    if VECTORS.exists():
        nodes[TINY] = compiled(directory / "tiny", VECTORS / "tiny.s", ("-nostdlib",))
    try:
        nodes["bin/busybox"] = Node.file(selftests.busybox(), 0o755)
        kernel = selftests.kernel()
    except DebianError as error:
        pytest.skip(str(error))
    ramdisk = directory / "ramdisk"
    with ramdisk.open("wb") as archive:
        write_cpio(archive, nodes.items())
    image = directory / "programs.eif"
    metadata = Metadata(image_name="programs", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00"))
    cmdline = f"{selftests.CMDLINE} reboot=k".encode()
    write_eif(
        Contents(kernel=kernel, cmdline=cmdline, ramdisks=[ramdisk.read_bytes()], metadata=metadata.pack()),
        image,
    )
    limits = ("--memory-mib", str(MEMORY_MIB), "--boot-timeout-s", str(TIMEOUT_S))
    command = images.launch(image, "--quiet", *limits, "--vsock-path", str(directory / "vsock"))

    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=False)

    console = done.stdout.decode(errors="replace").replace("\r", "")
    assert "@done" in console, console[-2000:]
    return selftests.results(console, list(built))


def compiled(target: Path, source: Path, flags: tuple[str, ...]) -> Node:
    subprocess.run([*COMPILE, "-o", target, source, *flags], check=True)
    return Node.file(target.read_bytes(), 0o755)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_ends_as_on_a_real_processor(outcomes: Mapping[str, selftests.Outcome], name: str) -> None:
    program = PROGRAMS[name]
    if name not in outcomes:
        pytest.skip(f"{program.source} is not here")

    outcome = outcomes[name]

    assert program.said in outcome.output
    assert "WRONG" not in outcome.output
    assert outcome.code == program.code, outcome.output
