"""Everything that checks, builds and tries this project: ``nox -l`` lists it, ``nox`` runs the tests.

A session installs what it needs into an environment of its own. Sessions that take long, download or
build a kernel are run by hand and keep what they made in ``.cache``.
"""

import hashlib
import os
import re
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "docs", "tests", "build", "compiled", "integration"]

# Containers often set it. Then every command that a test or benchmark starts compiles all its modules anew,
# which takes longer than the command itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# But pip need not compile all that it installs, most of which is never imported. "no" is how pip is told so,
# as if --no-compile was given (its manual: Configuration, "Boolean options").
os.environ["PIP_NO_COMPILE"] = "no"

ROOT = nox.project.load_toml("pyproject.toml")
MANIFESTS = {
    path.parent.name: nox.project.load_toml(path)
    for path in sorted(Path("packages").glob("*/pyproject.toml"))
}
PACKAGES = list(MANIFESTS)
BENCHES = {
    "launch": "tools/bench_boot.py",
    "commands": "tools/bench_commands.py",
    "idle": "tools/bench_idle.py",
    "processor": "tools/bench_processor.py",
    "round trips": "tools/bench_round_trips.py",
    "eif": "packages/eif/bench/measure.py",
    "nsm": "packages/nsm/bench/rates.py",
    "vsock": "packages/vsock/bench/compare.py",
}

BENCH_SKIPPED = 4
"""The exit code of a benchmark that lacks something here, and has said what."""

PYTHONS = nox.project.python_versions(MANIFESTS["vmm"])
"""What the packages run on, as their classifiers say."""

COVERAGE_FLOORS = {"eif": 94, "nsm": 97, "vsock": 95, "vmm": 94}
"""Per cent of lines and branches that each package's tests must reach. Raise them when tests reach more."""

NOT_COUNTED = ["*/accel/kvm/*"]
"""What tests can reach on some hosts only: KVM's skip where there is none."""

KVM_TESTS = [
    "packages/vmm/tests/accel/test_kvm.py",
    "packages/vmm/tests/accel/test_kvm_state.py",
    "packages/vmm/tests/accel/test_kvm_programs.py",
    "packages/vmm/tests/accel/test_kvm_debug.py",
    "integration-tests/test_kvm.py",
    "integration-tests/test_kvm_saved.py",
    "integration-tests/test_kvm_snapshots.py",
    "integration-tests/test_enclave.py",
]
"""What `kvm` runs if nothing else is asked. A few of these run in `integration`, too."""

KVM_COMMAND_TESTS = [
    "integration-tests/test_vmm_lifecycle.py",
    "integration-tests/test_hostile.py",
    "integration-tests/test_gdb.py::test_gdb_on_kvm_steps_and_lets_the_kernel_boot",
]
"""What `kvm` runs with ``--commands``, and with ``--here``. Each of them starts a command or several, and in
the emulated machine a start of Python takes tens of seconds, so these take an hour there."""

WORKERS = ["-n", "2"]
"""Run tests in two processes. Most wait for programs that they start, or compute on one processor."""

WHOLE_FILES = [*WORKERS, "--dist", "loadfile", "--no-loadscope-reorder"]
"""The same, but what a file's tests share, such as a guest that has booted, is made once. Files begin in the
order of their names, because those with few tests are not the short ones."""

COMPILE = {"NITRO_VSOCK_COMPILE": "1", "VMM_COMPILE": "1"}
"""Has the data path compiled, or the build fail."""

COMPILED_TESTS = [f"packages/vmm/tests/{folder}" for folder in ("accel", "devices", "machine", "snapshot")]
"""Those of nitro-vmm that say what its compiled modules do."""


def group(name: str) -> list[str]:
    """The requirements of one dependency group of the repository."""
    return list(nox.project.dependency_groups(ROOT, name))


def local(package: str, *, extras: bool = False) -> list[str]:
    """Editable installs of one package and of the siblings that it declares, and of no others.

    So a package that imports a neighbour which it does not declare fails its own tests.

    Args:
        package: which one.
        extras: with all that it may use, besides what it needs.
    """
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        for requirement in MANIFESTS[name]["project"]["dependencies"]:
            match = re.match(r"nitro-(\w+)", requirement)
            if match and match[1] in MANIFESTS:
                visit(match[1])
        chosen = MANIFESTS[name]["project"]["optional-dependencies"] if extras and name == package else []
        found[f"./packages/{name}[{','.join(chosen)}]" if chosen else f"./packages/{name}"] = None

    visit(package)
    return [argument for path in found for argument in ("-e", path)]


def from_sources() -> dict[str, str]:
    """An environment in which Python finds all packages where they are, for what needs no installation."""
    return {"PYTHONPATH": os.pathsep.join(str(Path("packages", name, "src").resolve()) for name in PACKAGES)}


def run_together(session: nox.Session, *commands: list[str], env: dict[str, str] | None = None) -> None:
    """Run commands, two at a time; the output of one that fails is shown.

    Args:
        session: where.
        commands: what, the longest first.
        env: what is added to their environment.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        for done in [pool.submit(session.run, *command, env=env, silent=True) for command in commands]:
            done.result()


def install_once(session: nox.Session) -> None:
    """Install everything, unless that was done and nothing has changed that an installation is made of.

    So a second run needs no network. Python files are not copied by an editable installation.
    """
    sources = [*Path("packages").glob("*/pyproject.toml"), *Path("packages/eif/init").glob("*.[chp]*")]
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()
    stamp = Path(session.virtualenv.location, "installed")
    if not stamp.exists() or stamp.read_text() != state:
        session.install(*local("vmm"))
        stamp.write_text(state)


def can_compile() -> bool:
    """Whether there are a C compiler and Python's headers (Debian: gcc, python3-dev)."""
    return shutil.which("cc") is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def built_wheel(package: str) -> Path | None:
    """A package's wheel that `build` compiled, if it was for this Python and nothing changed since."""
    sources = [
        path
        for path in Path("packages", package).rglob("*")
        if path.name in {"pyproject.toml", "hatch_build.py"}
        or ({"src", "native"} & set(path.parts) and path.suffix in {".py", ".c", ".h"})
    ]
    changed = max(path.stat().st_mtime for path in sources)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = Path("dist").glob(f"nitro_{package}-*-{tag}-{tag}-*.whl")
    return next((wheel for wheel in wheels if wheel.stat().st_mtime > changed), None)


def install_compiled(session: nox.Session, *packages: str) -> None:
    """Install packages compiled, in place of those of before, and what else they need."""
    for package in packages:
        project = MANIFESTS[package]["project"]
        needed = [each for each in project["dependencies"] if not each.startswith("nitro-")]
        session.install(*needed, *project["optional-dependencies"]["completion"])
    sources = [str(built_wheel(package) or Path("packages", package).resolve()) for package in packages]
    session.install("--force-reinstall", "--no-deps", *sources, env=COMPILE)


@nox.session
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def tests(session: nox.Session, package: str) -> None:
    """Test one package with only what it declares; a whole run holds the floor of coverage."""
    stand_ins = group(f"test-{package}") if f"test-{package}" in ROOT["dependency-groups"] else []
    session.install(*local(package, extras=True), *group("test"), *stand_ins)
    if session.posargs:
        session.run("pytest", f"packages/{package}/tests", *session.posargs)
        return
    measured = {"COVERAGE_FILE": str(Path(session.virtualenv.location, "coverage"))}
    source = f"--source=nitro_{package}"
    session.run("coverage", "erase", env=measured)
    session.run(
        *("coverage", "run", source, "-m", "pytest", *WORKERS, f"packages/{package}/tests"), env=measured
    )
    session.run("coverage", "combine", "--quiet", env=measured)
    floor = f"--fail-under={COVERAGE_FLOORS[package]}"
    session.run("coverage", "report", floor, f"--omit={','.join(NOT_COUNTED)}", env=measured)


# The same on any Python that the packages support: ``nox -s tests-3.13`` or ``nox -s 'tests-3.13(eif)'``.
for version in PYTHONS:
    nox.session(tests.func, python=version, name=f"tests-{version}")


@nox.session
def compiled(session: nox.Session) -> None:
    """Test once more, compiled, what can be: nitro-vsock, and nitro-vmm's devices and processor."""
    if not can_compile():
        session.skip("no C compiler, or no headers of this Python: install gcc and python3-dev")
    session.install(*local("eif"), *local("nsm"), *group("test"))
    install_compiled(session, "vsock", "vmm")
    for module in ("nitro_vsock.device.engine", "nitro_vmm.devices.vsock"):
        session.run("python", "-c", f"import {module} as found; assert found.__file__.endswith('.so')")
    session.run("pytest", "packages/vsock/tests", *COMPILED_TESTS, *(session.posargs or WORKERS))


@nox.session
def integration(session: nox.Session) -> None:
    """Test what needs two packages, a real kernel, QEMU or a daemon."""
    session.install(*local("vmm"), "-e", "./packages/nsm[kms]", *group("test"), *group("test-integration"))
    session.run("pytest", "integration-tests", *(session.posargs or WHOLE_FILES))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and the direction of imports."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env=from_sources())


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of packages, tests and tools, and that those of all public names are declared."""
    session.install(*local("vmm"), *group("test"), *group("types"), "nox")
    with ThreadPoolExecutor() as pool:
        # This is another type checker, which takes as long as the rest, so it has the other processor.
        public = pool.submit(session.run, "python", "tools/public_types.py", silent=True)
        for package in PACKAGES:
            session.run("mypy", f"packages/{package}/src", f"packages/{package}/tests")
        session.run("mypy", "noxfile.py", "tools", "integration-tests")
        session.run("mypy", "conftest.py")
        public.result()


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation as a site in ``.cache/documentation/site``, and check its links."""
    session.install(*group("docs"))
    session.run("python", "tools/documentation.py")


def write_manuals(session: nox.Session) -> None:
    """Write the manual pages, which the build then packs; their texts come from the commands themselves."""
    session.run("python", "tools/man_pages.py", env=from_sources(), silent=True)


@nox.session
def build(session: nox.Session) -> None:
    """Build wheels and sdists, install the wheels in a clean environment, import and start them."""
    session.install("build")
    shutil.rmtree("dist", ignore_errors=True)
    write_manuals(session)
    make = ["python", "-m", "build", "--outdir", "dist"]
    by_time = sorted(PACKAGES, key=["vsock", "vmm", "eif", "nsm"].index)
    run_together(
        session, *([*make, f"packages/{name}"] for name in by_time), env=COMPILE if can_compile() else None
    )
    session.run("python", "tools/try_wheels.py", "dist", *session.posargs)
    # Source distributions, too, install where there is no compiler, although some parts are missing then.
    target = Path(session.virtualenv.location, "without-compiler")
    shutil.rmtree(target, ignore_errors=True)
    install = ["python", "-m", "pip", "install", "--quiet", "--no-deps"]
    run_together(
        session,
        *(
            [*install, "--target", str(target / path.name), str(path)]
            for path in sorted(Path("dist").glob("*.tar.gz"))
        ),
        env={"CC": "/nonexistent/cc"},
    )


@nox.session(venv_backend="none")
def bump(session: nox.Session) -> None:
    """Write a version to all places that have it: ``nox -s bump -- 0.2.0``; without one, show them."""
    session.run(sys.executable, "tools/project.py", "version", *session.posargs)


@nox.session
def release(session: nox.Session) -> None:
    """Build and check what a release publishes, and show its changelog; publishes and changes nothing.

    ``-- --complete`` fails if a supported Python is absent, and ``-- --changelog`` only writes the changelog.
    """
    session.install(*group("release"))
    session.run("python", "tools/project.py", "version")
    if session.posargs == ["--changelog"]:
        session.run("towncrier", "build", "--yes")
        return
    session.run("towncrier", "build", "--draft")
    write_manuals(session)
    session.run("python", "tools/release.py", "dist", *session.posargs)


@nox.session
def hello(session: nox.Session) -> None:
    """Build an enclave image from Debian's kernel and boot it; ``-- --kernel nitro`` for one like AWS's."""
    install_once(session)
    session.run("python", "tools/hello.py", *session.posargs)


@nox.session(name="guest-kernel", venv_backend="none")
def guest_kernel(session: nox.Session) -> None:
    """Build a guest kernel like AWS's from Debian's source (nine minutes on two cores)."""
    session.run(sys.executable, "tools/guest_kernel.py")


@nox.session
def kvm(session: nox.Session) -> None:
    """Test enclaves on KVM, in an emulated machine that has it; ``-- --here`` on this host's own.

    ``-- --commands`` for the tests that run commands, which takes an hour.
    """
    session.install(*local("vmm"), *group("test"), *group("test-integration"))
    # Compilers are slow in there, and the cache can only be read.
    session.run("python", "tools/images.py", success_codes=[0, 4])
    here, commands = "--here" in session.posargs, "--commands" in session.posargs
    named = [argument for argument in session.posargs if argument not in {"--here", "--commands"}]
    listed = [] if commands else KVM_TESTS
    if here or commands:
        listed = [*listed, *KVM_COMMAND_TESTS]
    session.run(
        *([] if here else ["python", "tools/kvm.py", "--timeout-s", "7200" if commands else "3600"]),
        *("python", "-m", "pytest", "-p", "no:cacheprovider", *(named or listed)),
        env={"NITRO_VMM_ACCELERATOR": "kvm"},
    )


@nox.session
def soak(session: nox.Session) -> None:
    """Boot the hello image again and again, and count what comes up."""
    install_once(session)
    session.run("python", "tools/soak.py", *session.posargs)


@nox.session
def userland(session: nox.Session) -> None:
    """Compute in a Debian user space in the guest, and compare with this machine's results."""
    install_once(session)
    session.run("python", "tools/userland.py", *session.posargs)


@nox.session(name="just-in-time")
def just_in_time(session: nox.Session) -> None:
    """Run Java and LuaJIT, which write code while they run, in the guest, and count wrong results."""
    install_once(session)
    session.run("python", "tools/just_in_time.py", *session.posargs)


@nox.session
def selftests(session: nox.Session) -> None:
    """Run the Linux kernel's own tests in an enclave and in QEMU; ``-- --only 'sigreturn|iopl'``."""
    install_once(session)
    session.run("python", "tools/selftests.py", *session.posargs)


@nox.session(name="python-guests")
def python_guests(session: nox.Session) -> None:
    """Test what needs Python in an enclave: boto3 with the local KMS, and a device through CUSE."""
    session.install(*local("vmm"), "-e", "./packages/nsm[kms]", *group("test"))
    tests = session.posargs or ["integration-tests/test_kms_boto3.py", "integration-tests/test_nsm_cuse.py"]
    session.run("pytest", *tests, env={"PYTHON_GUESTS": "1"})


@nox.session
def clock(session: nox.Session) -> None:
    """Compare an enclave's clock with this computer's; --minutes 10 shows whether it drifts."""
    install_once(session)
    session.run("python", "tools/guest_clock.py", *session.posargs)


@nox.session(name="machine-fuzz")
def machine_fuzz(session: nox.Session) -> None:
    """Run random guests on whole machines; ``-- --count 100000 --seed 1``, ``-- --replay FILE``."""
    install_once(session)
    session.run("python", "tools/fuzz_machines.py", *session.posargs)


@nox.session
def isa(session: nox.Session) -> None:
    """Compare every instruction with this machine's processor; ``-- --inputs 1500 --seed 7``."""
    install_once(session)
    session.run("python", "tools/conformance.py", *session.posargs)


@nox.session(venv_backend="virtualenv")
def forwarding(session: nox.Session) -> None:
    """Run the tests that need AF_VSOCK with a loopback in a guest, for few machines have one."""
    install_once(session)
    session.run("python", "tools/forwarding.py", *session.posargs)


@nox.session
@nox.parametrize("script", list(BENCHES.values()), ids=list(BENCHES))
def bench(session: nox.Session, script: str) -> None:
    """Measure the launch, and each package against its peers; ``nox -s 'bench(launch)' -- --runs 20``.

    What is found is printed, kept in ``.cache/bench`` and drawn there in ``figures.svg``.
    """
    if script == BENCHES["vsock"] and can_compile():
        install_compiled(session, "vsock")
    else:
        session.install(*local("vmm"), *group("test"))
    (name,) = (name for name, path in BENCHES.items() if path == script)
    command = ["python", "tools/bench.py", name, script, *session.posargs]
    session.run(*command, success_codes=[0, BENCH_SKIPPED])


@nox.session
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def fuzz(session: nox.Session, package: str) -> None:
    """Run a package's fuzz targets; ``-- -runs=1000000`` for how long, each."""
    session.install(*local(package), *group("test"), *group("fuzz"))
    for target in sorted(Path("packages", package, "fuzz").glob("*.py")):
        session.run("python", str(target), *(session.posargs or ["-runs=100000"]))


@nox.session
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def mutants(session: nox.Session, package: str) -> None:
    """Change a package at random places; count what its tests do not notice; ``-- --seed 2 --count 100``."""
    stand_ins = group(f"test-{package}") if f"test-{package}" in ROOT["dependency-groups"] else []
    session.install(*local(package, extras=True), *group("test"), *stand_ins, *group("mutants"))
    session.run("python", "tools/mutants.py", package, *session.posargs)


@nox.session(name="vsock-suite")
def vsock_suite(session: nox.Session) -> None:
    """Run the Linux kernel's own vsock tests between two guests of the daemon; ``-- 6.12`` for one kernel."""
    install_once(session)
    session.run("python", "tools/vsock_suite.py", *session.posargs, success_codes=[0, BENCH_SKIPPED])
