"""The four commands have one set of manners: how they fail, end, help and report.

They are distributions that share no code, so this file is what keeps them alike. A fifth command is one more
line in `COMMANDS`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path

import pytest

from nitro_eif import BuildMetadata, Contents, Metadata, write_eif
from nitro_vmm.testing import tiny_kernel

END_TIMEOUT_S = 60

# Output is buffered as users have it, so that a failure to write is found when the program ends, too.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@dataclass(frozen=True)
class Command:
    """What the tests must know of a command."""

    name: str
    distribution: str
    missing_file: tuple[str, ...]
    """Arguments that name a file that does not exist."""
    silent: frozenset[str]
    """Subcommands that report nothing, so that they need no ``--json``."""

    @property
    def path(self) -> str:
        """The program, installed beside the Python that runs the tests."""
        return str(Path(sys.executable).parent / self.name)

    @property
    def entry_point(self) -> EntryPoint:
        """What the program calls."""
        (found,) = entry_points(group="console_scripts", name=self.name)
        return found


COMMANDS = [
    Command("eif", "nitro-eif", ("describe", "nowhere.eif"), frozenset({"completion"})),
    Command("nsm", "nitro-nsm", ("describe", "nowhere.cose"), frozenset({"completion"})),
    Command("vhost-user-vsock", "nitro-vsock", ("stats", "nowhere.sock"), frozenset({"completion"})),
    # `console` and `logs` copy what the enclave prints; `nitro-cli` is AWS's command, with AWS's manners.
    Command(
        "vmm",
        "nitro-vmm",
        ("run", "nowhere.eif"),
        frozenset({"completion", "console", "logs", "nitro-cli"}),
    ),
]

EVERY_COMMAND = pytest.mark.parametrize("command", [pytest.param(each, id=each.name) for each in COMMANDS])

SLOW_TO_IMPORT = {
    *("asyncio", "cbor2", "cryptography", "email", "hypothesis", "importlib.metadata", "lz4", "pydantic"),
    *("ssl", "trio", "unicorn", "urllib.request", "yaml", "zstandard"),
}
"""Modules that a help text has no use for; each takes 10 ms to 200 ms, and bare Python starts in 15."""


def run(
    command: Command, *arguments: str, directory: Path, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [command.path, *arguments],
        cwd=directory,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=END_TIMEOUT_S,
        check=False,
    )


def run_without_reader(
    command: Command, *arguments: str, directory: Path
) -> subprocess.CompletedProcess[str]:
    """Run it with a pipe as its output, of which the other end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return run(command, *arguments, directory=directory, stdout=writing)
    finally:
        os.close(writing)


def subcommands(command: Command, directory: Path) -> list[str]:
    """The names under COMMAND in the help text."""
    text = run(command, "--help", directory=directory).stdout
    _, _, listed = text.partition("\n  COMMAND\n")
    names = []
    for line in listed.splitlines():
        if not line.startswith("    "):
            break
        names += re.findall(r"^ {4}([a-z][a-z-]*)", line)
    assert "completion" in names, text
    return names


@dataclass(frozen=True)
class Busy:
    """Arguments that keep a command at work, and how to wait until it is."""

    arguments: tuple[str, ...]
    wait: Callable[["subprocess.Popen[str]"], None]


@contextmanager
def pulling(directory: Path) -> Iterator[Busy]:
    """`eif` waits for the answer of a registry that says nothing."""
    for name in ("kernel", "cmdline"):
        (directory / name).write_bytes(b"any")
    with socket.create_server(("127.0.0.1", 0)) as listener, answered(listener) as wait:
        image = f"127.0.0.1:{listener.getsockname()[1]}/application"
        application = ("--image", image, "--plain-http", "--kernel", "kernel", "--cmdline", "any")
        yield Busy(("build", *application, "--output", "new.eif"), wait)


@contextmanager
def reading(directory: Path) -> Iterator[Busy]:
    """`nsm` reads a named pipe into which nobody writes."""
    pipe = directory / "pipe"
    os.mkfifo(pipe)
    writing: list[int] = []
    yield Busy(("describe", "pipe"), lambda _: writing.append(os.open(pipe, os.O_WRONLY)))
    for descriptor in writing:
        os.close(descriptor)


@contextmanager
def asking(directory: Path) -> Iterator[Busy]:
    """`vhost-user-vsock stats` waits for the answer of a daemon that says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()
        with answered(listener) as wait:
            yield Busy(("stats", "socket"), wait)


@contextmanager
def answered(listener: socket.socket) -> Iterator[Callable[["subprocess.Popen[str]"], None]]:
    """A way to wait for the command's connection, which is kept and not used."""
    listener.settimeout(END_TIMEOUT_S)
    with ExitStack() as stack:
        yield lambda _: stack.enter_context(listener.accept()[0]).setblocking(True)


@contextmanager
def booting(directory: Path) -> Iterator[Busy]:
    """`vmm` runs a guest that says ``ready`` and then does nothing for ever."""
    # mov dx,0x3f8; for each byte: mov al,BYTE; out dx,al. Then: cli; jmp $.
    says_ready = bytes.fromhex("66baf803") + b"".join(bytes([0xB0, byte, 0xEE]) for byte in b"ready\n")
    kernel = tiny_kernel(says_ready + bytes.fromhex("faebfe"))
    metadata = Metadata(image_name="test", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00"))
    contents = Contents(
        kernel=kernel, cmdline=b"console=ttyS0", ramdisks=[bytes(512)], metadata=metadata.pack()
    )
    write_eif(contents, directory / "spin.eif")

    def wait(process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()

    yield Busy(("run", "--console", "spin.eif"), wait)


ESCAPE = "a\x1b]0;title\x07\x9bb"
"""What would change the title of a terminal, and move its cursor."""


class TestWrongUsage:
    @EVERY_COMMAND
    @pytest.mark.parametrize("place", ["file", "option", "verb"])
    def test_names_are_shown_without_escape_sequences(
        self, command: Command, place: str, tmp_path: Path
    ) -> None:
        arguments = {
            "file": (command.missing_file[0], ESCAPE),
            "option": (*command.missing_file, f"--{ESCAPE}"),
            "verb": (ESCAPE,),
        }

        done = run(command, *arguments[place], directory=tmp_path)

        assert done.returncode != 0
        assert "\\x1b]0;title" in done.stderr
        assert all(letter.isprintable() or letter == "\n" for letter in done.stderr)

    @EVERY_COMMAND
    def test_an_unknown_option_exits_with_2_and_is_named(self, command: Command, tmp_path: Path) -> None:
        done = run(command, "--no-such-option", directory=tmp_path)

        assert done.returncode == 2
        assert done.stdout == ""
        assert any(line.startswith(f"{command.name}: error: ") for line in done.stderr.splitlines())

    @EVERY_COMMAND
    def test_an_unknown_subcommand_exits_with_2_and_is_named(self, command: Command, tmp_path: Path) -> None:
        done = run(command, "no-such-verb", directory=tmp_path)

        assert done.returncode == 2
        assert f"{command.name}: error: " in done.stderr
        assert "no-such-verb" in done.stderr


class TestErrors:
    @EVERY_COMMAND
    def test_an_error_says_who_speaks_what_is_wrong_and_what_to_do(
        self, command: Command, tmp_path: Path
    ) -> None:
        done = run(command, *command.missing_file, directory=tmp_path)

        *_, error, hint = done.stderr.splitlines()  # what is only told may come before
        assert error.startswith(f"{command.name}: error: ")
        assert command.missing_file[-1] in error
        assert hint.startswith("  hint: ")
        assert done.stdout == ""
        assert done.returncode in {3, 4}

    @EVERY_COMMAND
    def test_what_an_extra_needs_is_named_with_the_line_that_installs_it(
        self, command: Command, tmp_path: Path
    ) -> None:
        program = (
            "import sys; sys.modules['shtab'] = None\n"
            f"from {command.entry_point.module} import {command.entry_point.attr} as main\n"
            "sys.exit(main(['completion', 'bash']))"
        )

        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
        )

        error, hint = done.stderr.splitlines()
        assert error.startswith(f"{command.name}: error: ")
        assert hint == f"  hint: pip install '{command.distribution}[completion]'"
        assert done.returncode == 4


class TestEnding:
    @EVERY_COMMAND
    def test_a_reader_that_has_left_ends_it_quietly(self, command: Command, tmp_path: Path) -> None:
        pytest.importorskip("shtab")

        done = run_without_reader(command, "completion", "bash", directory=tmp_path)

        assert done.stderr == ""
        assert done.returncode == 1

    @EVERY_COMMAND
    def test_so_does_one_of_the_help_text(self, command: Command, tmp_path: Path) -> None:
        done = run_without_reader(command, "--help", directory=tmp_path)

        assert done.stderr == ""

    @pytest.mark.parametrize(
        ("command", "busy"),
        [
            pytest.param(COMMANDS[0], pulling, id="eif"),
            pytest.param(COMMANDS[1], reading, id="nsm"),
            pytest.param(COMMANDS[2], asking, id="vhost-user-vsock"),
            pytest.param(COMMANDS[3], booting, id="vmm"),
        ],
    )
    def test_ctrl_c_exits_with_130_and_without_a_traceback(
        self, command: Command, busy: Callable[[Path], AbstractContextManager[Busy]], tmp_path: Path
    ) -> None:
        with busy(tmp_path) as work:
            process = subprocess.Popen(
                [command.path, *work.arguments],
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                work.wait(process)
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=END_TIMEOUT_S)
            finally:
                process.kill()
                process.communicate()

        assert process.returncode == 130, said
        assert "Traceback" not in said


class TestHelp:
    @EVERY_COMMAND
    def test_the_version_is_the_distributions(self, command: Command, tmp_path: Path) -> None:
        done = run(command, "--version", directory=tmp_path)

        # The daemon adds whether its data path is compiled.
        said = done.stdout.removesuffix("\n").removesuffix(" (compiled)")
        assert said == f"{command.name} {version(command.distribution)}"
        assert done.returncode == 0

    @EVERY_COMMAND
    def test_help_has_an_example_and_the_exit_codes_and_so_has_that_of_each_subcommand(
        self, command: Command, tmp_path: Path
    ) -> None:
        for path in ([], *([name] for name in subcommands(command, tmp_path))):
            done = run(command, *path, "--help", directory=tmp_path)

            assert done.returncode == 0
            if path == ["nitro-cli"]:
                continue  # AWS's own text
            for heading in ("example:", "exit codes"):
                assert heading in done.stdout, f"{command.name} {' '.join(path)} --help has no {heading!r}"

    @EVERY_COMMAND
    def test_help_and_version_import_nothing_slow(self, command: Command, tmp_path: Path) -> None:
        program = (
            "import sys\n"
            f"from {command.entry_point.module} import {command.entry_point.attr} as main\n"
            "try: main(['--help'])\n"
            "except SystemExit: pass\n"
            "print(*sys.modules, file=sys.stderr)"
        )

        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
        )

        assert "usage:" in done.stdout
        assert SLOW_TO_IMPORT.intersection(done.stderr.split()) == set()

    @pytest.mark.parametrize("shell", ["bash", "zsh"])
    @EVERY_COMMAND
    def test_a_completion_script_completes_every_subcommand(
        self, command: Command, shell: str, tmp_path: Path
    ) -> None:
        pytest.importorskip("shtab")

        done = run(command, "completion", shell, directory=tmp_path)

        assert done.returncode == 0
        for name in (command.name, *subcommands(command, tmp_path)):
            assert name in done.stdout


class TestJson:
    @EVERY_COMMAND
    def test_every_subcommand_that_reports_can_do_so_in_json(self, command: Command, tmp_path: Path) -> None:
        usages = {
            name: run(command, name, "--help", directory=tmp_path).stdout.partition("\n\n")[0]
            for name in subcommands(command, tmp_path)
            if name not in command.silent
        }

        assert [name for name, usage in usages.items() if "--json" not in usage] == []

    def test_the_daemon_prints_its_configuration_as_json(self, tmp_path: Path) -> None:
        daemon = COMMANDS[2]

        done = run(
            daemon, "--guest-cid", "16", "--socket", "s", "--uds-path", "v", "--check", directory=tmp_path
        )

        assert json.loads(done.stdout)["vms"][0]["guest_cid"] == 16
