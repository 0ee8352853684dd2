"""``vmm doctor``: whether this machine has what enclaves need."""

import argparse
import json
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli.command import add_command, add_json
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.cli.streams import shown

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers

PACKAGES: Final = ("nitro-vmm", "nitro-eif", "nitro-nsm", "nitro-vsock")
COMPILED: Final = {"nitro-vmm": "nitro_vmm.devices.vsock", "nitro-vsock": "nitro_vsock.device.engine"}
"""A module of each package that wheels have compiled, which is faster."""
NATIVE_FIX: Final = "install nitro-vmm's wheel, or gcc before nitro-vmm is installed from its sources"
DESCRIPTORS_WANTED: Final = 256
MEMORY_MIB_WANTED: Final = 1024
"""An enclave of the default size, and as much again for the emulator."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    """Its name."""
    ok: bool
    """Whether it is as it should be."""
    fact: str
    """What was found."""
    fix: str = ""
    """What to do; empty where nothing is."""


def add(commands: "Subparsers") -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "doctor",
        execute,
        about="check that this machine has what enclaves need",
        example="vmm doctor",
    )
    add_json(parser)


def execute(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all commands
    """Look at everything."""
    findings = [finding for check in CHECKS for finding in _guarded(check)]
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}: {shown(finding.fact)}")
            if finding.fix:
                print(f"     hint: {finding.fix}")
    return ExitCode.ENDED if all(finding.ok for finding in findings) else ExitCode.HOST


def _guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a check finds; one that fails is a finding, too."""
    try:
        return list(check())
    except Exception as error:  # noqa: BLE001 - this command is for machines on which things fail
        name = check.__name__.removeprefix("_")
        return [
            Finding(name, ok=False, fact=f"{type(error).__name__}: {error}", fix=getattr(error, "hint", ""))
        ]


def _system() -> Iterator[Finding]:
    machine = f"{platform.system()} {platform.release()} on {platform.machine()}"
    fit = (platform.system(), platform.machine()) == ("Linux", "x86_64")
    yield Finding("system", ok=fit, fact=machine, fix="" if fit else "vmm runs on Linux on x86_64")
    yield Finding("Python", ok=sys.version_info >= (3, 11), fact=platform.python_version())


def _packages() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - takes long to load
    from importlib.util import find_spec  # noqa: PLC0415 - only here

    def how(name: str) -> str:
        module = find_spec(COMPILED[name]) if name in COMPILED else None
        return "" if module is None or str(module.origin).endswith(".py") else " (compiled)"

    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    same = len(set(found.values())) == 1
    fact = ", ".join(f"{name} {number}{how(name)}" for name, number in found.items())
    yield Finding("packages", ok=same, fact=fact, fix="" if same else "install the same version of all four")


def _accelerator() -> Iterator[Finding]:
    from nitro_vmm.accel import open_accelerator  # noqa: PLC0415 - needed now

    said: list[str] = []
    opened = open_accelerator("auto", say=said.append)
    fix = "" if opened.name == "kvm" else _fix_of_kvm()
    yield Finding("accelerator", ok=True, fact="; ".join([opened.name, *said]), fix=fix)
    from nitro_vmm.accel.unicorn import native  # noqa: PLC0415 - needed now

    fact = "with its native part"
    if native.MISSING:
        fact = f"without its native part, because {native.MISSING}: slower, and some instructions are wrong"
    yield Finding("emulated processor", ok=True, fact=fact, fix=NATIVE_FIX if native.MISSING else "")


def _fix_of_kvm() -> str:
    """What to do for the host's own processor to run enclaves; empty where that is not known."""
    from nitro_vmm.accel.kvm.probe import probe  # noqa: PLC0415 - needed now

    return probe().hint


def _limits() -> Iterator[Finding]:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = descriptors >= DESCRIPTORS_WANTED or descriptors == resource.RLIM_INFINITY
    yield Finding(
        "open files", ok=enough, fact=f"at most {descriptors}", fix="" if enough else "raise ulimit -n"
    )
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    unlimited = space == resource.RLIM_INFINITY
    fact = "unlimited" if unlimited else f"at most {space >> 20} MiB"
    enough = unlimited or space >> 20 >= 2 * MEMORY_MIB_WANTED
    yield Finding("address space", ok=enough, fact=fact, fix="" if enough else "raise ulimit -v")


def _memory() -> Iterator[Finding]:
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
        lines = dict(line.split(":", 1) for line in file)
    available_mib = int(lines["MemAvailable"].split()[0]) >> 10
    enough = available_mib >= MEMORY_MIB_WANTED
    fix = "" if enough else "give enclaves less with --memory-mib"
    yield Finding("memory", ok=enough, fact=f"{available_mib} MiB are available", fix=fix)
    os.close(os.memfd_create("doctor"))


def _registry() -> Iterator[Finding]:
    from nitro_vmm.run.registry import alive, entries, runtime_directory  # noqa: PLC0415

    running = sum(alive(entry) for entry in entries())
    yield Finding("runtime directory", ok=True, fact=f"{runtime_directory()}, {running} enclaves run")


def _test_root() -> Iterator[Finding]:
    from nitro_nsm import ensure_test_root  # noqa: PLC0415

    root = ensure_test_root()
    yield Finding("test root", ok=True, fact=f"SHA-256 {root.trust.fingerprint}")


CHECKS: Final = (_system, _packages, _accelerator, _limits, _memory, _registry, _test_root)
