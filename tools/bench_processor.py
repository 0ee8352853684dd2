"""Measure what the processor's work costs, against QEMU: ``python tools/bench_processor.py``.

Two parts. An exception and a SYSCALL are counted without any kernel: a loop with, less a loop without. Then a
guest of the Nitro-like kernel does work of several kinds, in turns with QEMU's microvm, without KVM; of each
kind the whole machine's processor time is taken between two words that the guest prints. The ratio of the two
says more than seconds on a machine where other programs run, too.
"""

import argparse
import mmap
import shutil
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import images
import userland
from bench_boot import MICROVM, QEMU, cpu_clock
from debian import say
from figures import Row, paired, report
from nitro_eif import BuildMetadata, Contents, Metadata, Node, read_rootfs, write_cpio, write_eif
from nitro_vmm.accel import ExitReason, open_accelerator
from nitro_vmm.address_map import MIB, RamRange
from nitro_vmm.boot import long_mode

CMDLINE = "console=ttyS0 quiet panic=-1"
MEMORY_MIB = 256
PYTHON_MEMORY_MIB = 768
"""More, for the user space."""
BOOT_TIMEOUT_S = 3600
SKIPPED = 4
ROUNDS = 300_000
"""How often the loops of the first part go round."""
CODE, IDT, HANDLER, STACK, TABLES = 0x20_0000, 0x20_2000, 0x20_1000, 0x20_8000, 0x20_4000
INVALID_OPCODE = 6

# What goes round: ECX counts, RBX is the address of `jmp rcx`.
LOOPS = {
    # ud2, whose handler does add qword [rsp],2; iretq
    "exception": "0f0b",
    # the same by hand: mov rax,rsp; push 0x18; push rax; pushf; push 0x10; lea rdx,[rip+3]; push rdx; iretq
    "exception by hand": "4889e0 6a18 50 9c 6a10 488d1503000000 52 48cf",
    # mov r10d,ecx; syscall, to jmp rcx; mov ecx,r10d
    "system call": "4189ca 0f05 4489d1",
    # mov r10d,ecx; lea rcx,[rip+2]; jmp rbx; mov ecx,r10d
    "system call by hand": "4189ca 488d0d02000000 ffe3 4489d1",
}


class _NoBus:
    """Nothing is there."""

    def read_port(self, _port: int, _size: int) -> int:
        return 0

    def write_port(self, _port: int, _size: int, _value: int) -> None: ...

    def read_memory(self, _address: int, _size: int) -> int:
        return 0

    def write_memory(self, _address: int, _size: int, _value: int) -> None: ...

    def finish_output(self) -> None: ...


class _Ram:
    def __init__(self) -> None:
        self.buffer = mmap.mmap(-1, 4 * MIB)

    def slice(self, address: int, length: int) -> memoryview:
        return memoryview(self.buffer)[address : address + length]

    def put(self, address: int, data: bytes) -> None:
        self.slice(address, len(data))[:] = data


def loop_seconds(body: str) -> float:
    """The processor time of one round of a loop, without any kernel.

    Raises:
        BenchError: the guest did not come to its end.
    """
    ram = _Ram()
    long_mode.write(ram)
    setup = "0f011c25" + struct.pack("<I", TABLES).hex()  # lidt
    for msr, low, high in (
        (0xC000_0081, 0, 0x0010),  # STAR: kernel code 0x10
        (0xC000_0082, HANDLER + 0x40, 0),  # LSTAR
        (0xC000_0084, 0x200, 0),  # FMASK
    ):
        setup += "b9" + struct.pack("<I", msr).hex() + "b8" + struct.pack("<I", low).hex()
        setup += "ba" + struct.pack("<I", high).hex() + "0f30"
    setup += "b9800000c0 0f32 83c801 0f30"  # EFER.SCE
    setup += "bb" + struct.pack("<I", HANDLER + 0x40).hex() + "b9" + struct.pack("<I", ROUNDS).hex()
    inside = bytes.fromhex(body)
    back = 256 - (len(inside) + 4)
    code = bytes.fromhex(setup) + inside + bytes.fromhex("ffc9 75") + bytes([back]) + bytes.fromhex("faf4")
    ram.put(CODE, code)
    ram.put(HANDLER, bytes.fromhex("4883042402 48cf"))
    ram.put(HANDLER + 0x40, bytes.fromhex("ffe1"))  # jmp rcx
    ram.put(
        IDT + 16 * INVALID_OPCODE, struct.pack("<HHHHQ", HANDLER & 0xFFFF, 0x10, 0x8E00, HANDLER >> 16, 0)
    )
    ram.put(TABLES, struct.pack("<HQ", 0xFFF, IDT))
    machine = open_accelerator("unicorn").create_vm([(RamRange(0, 4 * MIB), ram.buffer)], _NoBus())
    (processor,) = machine.vcpus
    processor.enter(long_mode.entry_state(CODE, rsp=STACK))
    started = time.process_time()
    ended = processor.run()
    seconds = time.process_time() - started
    machine.close()
    if ended.reason is not ExitReason.HALTED:
        raise BenchError(f"the loop of {body} ended with {ended}")
    return seconds / ROUNDS


class BenchError(Exception):
    """A machine did not come to its end; the message has what it said."""


def events(rounds: int) -> dict[str, list[float]]:
    """Seconds of an exception and of a SYSCALL beyond the guest's own work, once for each round."""
    seconds = {name: [loop_seconds(body) for _ in range(rounds)] for name, body in LOOPS.items()}
    return {
        kind: [one - two for one, two in zip(seconds[kind], seconds[f"{kind} by hand"], strict=True)]
        for kind in ("exception", "system call")
    }


def image(directory: Path, *, python: bool) -> tuple[Path, Path, Path]:
    """The image of the guest that works, and its kernel and ramdisk apart.

    Args:
        directory: where to put them.
        python: whether to have a Debian user space in it, for the work in Python.

    Raises:
        DebianError: a package cannot be fetched.
        ImageError: there is no compiler, or no kernel.
    """
    if shutil.which("gcc") is None:
        raise images.ImageError("there is no gcc to compile the guest's program; Debian's package is gcc")
    program = directory / "init"
    source = images.GUEST_SOURCES / "processor.c"
    if subprocess.run(["gcc", "-O2", "-static", "-o", program, source, "-lm"], check=False).returncode:
        raise images.ImageError(f"{source.name} does not compile, see the message above")
    initrd, eif = directory / "initrd", directory / "processor.eif"
    nodes = {"init": Node.file(program.read_bytes(), 0o755)}
    with ExitStack() as files:
        if python:
            nodes.update(read_rootfs(userland.unpack(), files).items())
            nodes["work.py"] = Node.file((images.GUEST_SOURCES / "work.py").read_bytes(), 0o644)
        with initrd.open("wb") as archive:
            write_cpio(archive, nodes.items())
    kernel = images.nitro_kernel()
    metadata = Metadata(image_name="processor", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00"))
    contents = Contents(
        kernel=kernel.read_bytes(),
        cmdline=f"{CMDLINE} reboot=k".encode(),
        ramdisks=[initrd.read_bytes()],
        metadata=metadata.pack(),
    )
    write_eif(contents, eif)
    return eif, kernel, initrd


def work(command: list[str]) -> dict[str, float]:
    """Run the guest on a machine; returns the processor time of each kind of work, in seconds.

    Raises:
        BenchError: the machine did not come to its end.
    """
    found: dict[str, float] = {}
    began, said = 0.0, ""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as machine:
        assert machine.stdout is not None  # noqa: S101 - it is a pipe
        clock = cpu_clock(machine.pid)
        for line in machine.stdout:
            said += line
            word, _, name = line.strip().partition(" ")
            if word == "@begin":
                began = time.clock_gettime(clock)
            elif word == "@end":
                found[name] = time.clock_gettime(clock) - began
    if machine.returncode or not found:
        raise BenchError(f"exit code {machine.returncode}: {said[-2000:]}")
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Measure what the processor's work costs, against QEMU.",
        epilog="example: nox -s 'bench(processor)' -- --runs 5",
    )
    parser.add_argument("--runs", type=int, default=3, help="medians of so many (default: %(default)s)")
    parser.add_argument(
        "--python", action="store_true", help="work in CPython and OpenSSL as well, in a Debian user space"
    )
    parser.add_argument("--qemu", default=QEMU, metavar="COMMAND", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    figures: dict[str, list[dict[str, float]]] = {"vmm": [], "qemu": []}
    try:
        costs = events(options.runs)
        with TemporaryDirectory() as scratch:
            eif, kernel, initrd = image(Path(scratch), python=options.python)
            memory_mib = MEMORY_MIB + (PYTHON_MEMORY_MIB if options.python else 0)
            machines = {
                "vmm": [
                    images.command("vmm"),
                    "run",
                    "--console",
                    str(eif),
                    "--memory-mib",
                    str(memory_mib),
                    "--quiet",
                ]
            }
            machines["vmm"] += ["--boot-timeout-s", str(BOOT_TIMEOUT_S), *images.EMULATED]
            if shutil.which(options.qemu):
                microvm = [
                    options.qemu,
                    "-M",
                    "microvm,acpi=off",
                    "-accel",
                    "tcg",
                    "-no-reboot",
                    "-nodefaults",
                ]
                microvm += ["-no-user-config", "-display", "none", "-serial", "stdio", "-m", str(memory_mib)]
                microvm += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", f"{CMDLINE} reboot=t"]
                machines["qemu"] = microvm
            for number in range(options.runs):
                for name, command in machines.items():
                    figures[name].append(work(command))
                    say(f"  {number + 1}/{options.runs} {name}: {sum(figures[name][-1].values()):.1f} s")
    except images.ERRORS as error:
        say(f"skipped: {error}")
        return SKIPPED
    except BenchError as error:
        say(f"error: {error}")
        return 1
    skipped = [] if figures["qemu"] else [f"{MICROVM}: there is no program {options.qemu}"]
    report(rows(costs, figures["vmm"], figures["qemu"]), skipped, as_json=options.json)
    return 0


def rows(
    costs: dict[str, list[float]], ours: list[dict[str, float]], theirs: list[dict[str, float]]
) -> list[Row]:
    """What was found: the two events, and each kind of work beside QEMU's, which did it next."""
    found = [paired(f"{name}, beyond the guest's own work", "s", values) for name, values in costs.items()]
    for kind in ours[0]:
        values = [[one[kind] for one in rounds] for rounds in (ours, theirs)]
        found.append(paired(kind, "s", *values, peer=MICROVM, cpu_s=(values[0], values[1])))
    return found


if __name__ == "__main__":
    sys.exit(main())
