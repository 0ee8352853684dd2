"""Run the Linux kernel's own tests in an enclave and in QEMU: ``python tools/selftests.py``.

The tests of the processor (tools/testing/selftests/x86, 64-bit and 32-bit), of timers and of breakpoints come
from Debian's kernel source. They are compiled here, static, and run under Debian's kernel in one and the same
ramdisk: what passes in QEMU's emulation must pass in ours.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import images
from debian import DEBIAN, say
from guest_kernel import SOURCE_PACKAGE
from nitro_eif import BuildMetadata, Contents, Metadata, Node, write_cpio, write_eif

CACHE = images.ROOT / ".cache" / "selftests"
SELFTESTS = "tools/testing/selftests"
FOLDERS = ("x86", "timers", "breakpoints")
QEMU = "qemu-system-x86_64"
MEMORY_MIB = 512
CMDLINE = "console=ttyS0 quiet panic=-1"
TEST_TIMEOUT_S = 60
TIMEOUT_S = 900

COMPILE = ("gcc", "-O2", "-g", "-std=gnu99", "-pthread", "-w", "-no-pie", "-static")
DEFINES = ("-D_GNU_SOURCE=1", "-DCAN_BUILD_32", "-DCAN_BUILD_64", "-DKTEST=1")
# What a test is linked with besides its own source, as in the Makefile of its folder.
HELPERS = {
    ("sysret_ss_attrs", 64): ("thunks.S",),
    ("ptrace_syscall", 32): ("raw_syscall_helper_32.S",),
    ("test_syscall_vdso", 32): ("thunks_32.S",),
    ("fsgsbase_restore", 64): ("clang_helpers_64.S",),
    ("fsgsbase_restore", 32): ("clang_helpers_32.S",),
    ("sysret_rip", 64): ("clang_helpers_64.S",),
}
HEADERS = "/usr/include/x86_64-linux-gnu"
"""Where gcc finds asm/ for 32-bit programs if gcc-multilib is not there, which cross compilers drive out."""
FLAGS = {"check_initial_reg_state": ("-Wl,-ereal_start",), "nx_stack": ("-Wl,-z,noexecstack",)}
TIMERS = ("posix_timers", "nanosleep", "nsleep-lat", "mqueue-lat", "threadtest")
"""Those that need no more than a minute and leave the clock alone."""
BREAKPOINTS = ("breakpoint_test",)
"""The others of the folder suspend the machine."""


class SelftestsError(Exception):
    """The tests cannot be had or run; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended."""

    code: int | None
    """Its exit code; `None` if it did not end, because the machine did before."""
    fails: int
    """How many lines say FAIL."""
    output: str

    @property
    def verdict(self) -> str:
        """For people."""
        if self.code is None:
            return "no end"
        if self.code == 4:  # KSFT_SKIP
            return "skipped"
        return "passed" if self.code == 0 and not self.fails else f"failed ({self.code}, {self.fails} FAIL)"


def source() -> Path:
    """The folder of the tests, unpacked once.

    Raises:
        DebianError: the package cannot be fetched.
        SelftestsError: it cannot be unpacked.
    """
    target = CACHE / "source"
    if not target.is_dir():
        package = DEBIAN.package(SOURCE_PACKAGE)
        say(f"unpacking {SELFTESTS} of {package.name}")
        unfinished = CACHE / "source.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        script = (
            'dpkg-deb --fsys-tarfile "$1" | tar -x --to-stdout --wildcards "*/linux-source-*.tar.xz" | '
            'tar -x --xz -C "$2" --strip-components=1 --wildcards "*/tools/testing/selftests/*" '
            '"*/tools/include/*" "*/arch/x86/include/*"'
        )
        if subprocess.run(["sh", "-c", script, "sh", package, unfinished], check=False).returncode:
            raise SelftestsError("the kernel's source cannot be unpacked, see the message above")
        unfinished.rename(target)
    return target / SELFTESTS


def listed(makefile: str, name: str) -> list[str]:
    """The words of a variable of a Makefile."""
    match = re.search(rf"^{name}\s*:=((?:.*\\\n)*.*)", makefile, re.MULTILINE)
    return match[1].replace("\\\n", " ").split() if match else []


def programs(tests: Path) -> Iterator[tuple[str, Path, int]]:
    """Each test's name, source and word size."""
    makefile = (tests / "x86" / "Makefile").read_text()
    both, needed = listed(makefile, "TARGETS_C_BOTHBITS"), listed(makefile, "TARGETS_C_32BIT_NEEDED")
    for name in both + needed + listed(makefile, "TARGETS_C_64BIT_ONLY"):
        yield f"{name}_64", tests / "x86" / f"{name}.c", 64
    for name in both + needed + listed(makefile, "TARGETS_C_32BIT_ONLY"):
        yield f"{name}_32", tests / "x86" / f"{name}.c", 32
    for folder, names in (("timers", TIMERS), ("breakpoints", BREAKPOINTS)):
        for name in names:
            yield name, tests / folder / f"{name}.c", 64


def compile_tests(tests: Path, target: Path) -> list[str]:
    """Compile all tests; returns the names of those that this machine cannot."""
    if shutil.which("gcc") is None:
        raise SelftestsError(
            "there is no gcc; Debian's package is gcc, and gcc-multilib for the 32-bit tests"
        )
    failed = []
    include = tests.parent.parent / "include"
    for name, path, bits in programs(tests):
        base = path.stem
        extra = [path.parent / helper for helper in HELPERS.get((base, bits), ())]
        command = [*COMPILE, f"-m{bits}", *DEFINES, *FLAGS.get(base, ()), "-I", tests, "-I", path.parent]
        command += ["-idirafter", include / "uapi", "-idirafter", HEADERS, "-o", target / name, path]
        command += [one for one in extra if one.exists()]
        done = subprocess.run([*command, "-lrt", "-lm"], capture_output=True, text=True, check=False)
        if done.returncode:
            failed.append(name)
            say(f"  {name} does not compile: {next(iter(done.stderr.splitlines()), '')}")
    if all(name in failed for name, _, bits in programs(tests) if bits == 32):
        say("none of the 32-bit tests compiles: install gcc-multilib")
    return failed


def kernel() -> bytes:
    """Debian's kernel.

    Raises:
        DebianError: it cannot be fetched.
    """
    with TemporaryDirectory() as scratch:
        package = DEBIAN.package("linux-image-cloud-amd64")
        subprocess.run(["dpkg-deb", "--extract", package, scratch], check=True)
        return next(Path(scratch, "boot").glob("vmlinuz-*")).read_bytes()


def busybox() -> bytes:
    """A static busybox.

    Raises:
        DebianError: it cannot be fetched.
    """
    with TemporaryDirectory() as scratch:
        subprocess.run(["dpkg-deb", "--extract", DEBIAN.package("busybox-static"), scratch], check=True)
        return next(Path(scratch).glob("**/bin/busybox")).read_bytes()


def ramdisk(tests: Path, path: Path, only: str) -> list[str]:
    """Write a ramdisk with the tests; returns their names.

    Raises:
        SelftestsError: there are none.
    """
    nodes = {
        "bin": Node.directory(0o755),
        "bin/busybox": Node.file(busybox(), 0o755),
        "init": Node.file((images.GUEST_SOURCES / "selftests.sh").read_bytes(), 0o755),
        "timeout": Node.file(f"{TEST_TIMEOUT_S}\n".encode(), 0o644),
        "tests": Node.directory(0o755),
    }
    names = sorted(program.name for program in tests.iterdir() if re.search(only, program.name))
    if not names:
        raise SelftestsError("there is no such test")
    for name in names:
        nodes[f"tests/{name}"] = Node.file((tests / name).read_bytes(), 0o755)
    with path.open("wb") as archive:
        write_cpio(archive, nodes.items())
    return names


def results(console: str, names: list[str]) -> dict[str, Outcome]:
    """What the console says of each test."""
    found = {}
    for name in names:
        begin, end = f"@begin {re.escape(name)}\n", f"@end {re.escape(name)} "
        match = re.search(rf"^{begin}(.*?)^{end}(\d+)$", console, re.MULTILINE | re.DOTALL)
        if match is None:
            found[name] = Outcome(None, 0, console[-2000:])
        else:
            fails = len(re.findall(r"\[FAIL\]|^not ok|\bFAILED\b", match[1], re.MULTILINE))
            found[name] = Outcome(int(match[2]), fails, match[1].strip())
    return found


def run(what: str, command: list[str]) -> str:
    """Run a machine to its end; returns its console."""
    say(f"running the tests in {what}")
    started = time.monotonic()
    path = CACHE / f"{what.rpartition(' ')[2]}.console"
    with (
        path.open("wb") as console,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console) as machine,
    ):
        try:
            machine.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            machine.kill()
    say(f"  {time.monotonic() - started:.0f} s")
    return path.read_bytes().decode(errors="replace").replace("\r", "")


def main() -> int:
    """Compile, run, compare; 0 when all that passes in QEMU passes in the enclave."""
    parser = argparse.ArgumentParser(
        description="Run the kernel's own tests in an enclave, and in QEMU where it is.",
        epilog="example: nox -s selftests -- --only 'sigreturn|iopl'",
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="tests whose names match")
    parser.add_argument("--without-qemu", action="store_true", help="do not run them in QEMU")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options, vmm_options = parser.parse_known_args()
    try:
        with TemporaryDirectory() as scratch:
            built = Path(scratch, "tests")
            built.mkdir()
            not_built = compile_tests(source(), built)
            return compare(built, not_built, options, vmm_options, Path(scratch))
    except (SelftestsError, *images.ERRORS) as error:
        say(f"error: {error}")
        return 4


def compare(
    built: Path, not_built: list[str], options: argparse.Namespace, vmm_options: list[str], scratch: Path
) -> int:
    """Run the tests on all machines that there are."""
    initrd, vmlinuz, image = scratch / "initrd", scratch / "vmlinuz", scratch / "selftests.eif"
    names = ramdisk(built, initrd, options.only)
    vmlinuz.write_bytes(kernel())
    metadata = Metadata(image_name="selftests", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00"))
    contents = Contents(
        kernel=vmlinuz.read_bytes(),
        cmdline=f"{CMDLINE} reboot=k".encode(),
        ramdisks=[initrd.read_bytes()],
        metadata=metadata.pack(),
    )
    write_eif(contents, image)
    limits = ("--memory-mib", str(MEMORY_MIB), "--boot-timeout-s", str(TIMEOUT_S))
    ours = results(run("an enclave", images.launch(image, "--quiet", *limits, *vmm_options)), names)
    theirs: dict[str, Outcome] = {}
    if shutil.which(QEMU) and not options.without_qemu:
        command = [QEMU, "-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", str(MEMORY_MIB), "-no-reboot"]
        command += ["-nodefaults", "-display", "none", "-serial", "stdio", "-kernel", str(vmlinuz)]
        command += ["-initrd", str(initrd), "-append", CMDLINE]
        theirs = results(run("QEMU", command), names)
    worse = [
        name
        for name in names
        if ours[name].verdict not in {"passed", "skipped"}
        and (not theirs or theirs[name].verdict in {"passed", "skipped"})
    ]
    report = {
        "not built": not_built,
        "worse than QEMU": worse,
        "tests": {
            name: {"ours": asdict(ours[name]), "qemu": asdict(theirs[name]) if theirs else None}
            for name in names
        },
    }
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "report.json").write_text(json.dumps(report, indent=1))
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        for name in names:
            qemu = theirs[name].verdict if theirs else "not run"
            mark = "  <--" if name in worse else ""
            print(f"{name:32} {ours[name].verdict:24} QEMU: {qemu}{mark}")
        say(f"what each printed: {CACHE / 'report.json'}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
