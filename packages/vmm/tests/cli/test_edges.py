"""The edges of the process: streams closed, full or slow, limits, signals, odd files and arguments."""

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nitro_vmm.cli.exit_code import ExitCode

VMM = [sys.executable, "-c", "import sys; from nitro_vmm.cli import main; sys.exit(main())"]


def shell(script: str, *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script in which ``"$@"`` is `vmm run --console` with these arguments."""
    command = ["sh", "-c", script, "sh", *VMM, "run", "--console", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert b"Traceback" not in done.stderr
    assert b"bug of vmm" not in done.stderr
    return done


@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", ">&-", "<&-", ">&- 2>&- <&-"])
def test_a_stream_that_is_closed_or_full_does_not_change_the_end(image: Path, streams: str) -> None:
    assert shell(f'"$@" {streams}', str(image)).returncode == ExitCode.ENDED


def test_a_closed_standard_output_is_nobody_elses(image: Path) -> None:
    before = image.read_bytes()

    shell('"$@" >&- 2>&-', str(image))

    assert image.read_bytes() == before


def test_a_report_that_cannot_be_written(image: Path) -> None:
    done = shell('"$@" >/dev/full', str(image), "--json")

    assert done.returncode == ExitCode.HOST
    assert b"vmm: error: standard output: No space left on device" in done.stderr


def test_a_reader_of_standard_error_that_goes_away(image: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)

    done = subprocess.run(
        [*VMM, "run", "--console", str(image)], stdout=subprocess.PIPE, stderr=write_end, check=False
    )
    os.close(write_end)

    assert (done.returncode, done.stdout) == (ExitCode.ENDED, b"hi")


def test_a_reader_of_standard_error_that_does_not_read(image: Path) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    while select.select([], [write_end], [], 0)[1]:
        os.write(write_end, bytes(4096))
    os.set_blocking(write_end, True)

    done = subprocess.run(
        [*VMM, "run", "--console", str(image)],
        stdout=subprocess.PIPE,
        stderr=write_end,
        check=False,
        timeout=60,
    )
    os.close(write_end)
    os.close(read_end)

    assert (done.returncode, done.stdout) == (ExitCode.ENDED, b"hi")


@pytest.mark.parametrize("option", ["--cmdline-append", "--role-arn", "--memory-mib", "--instance-id"])
def test_arguments_that_are_not_utf8(image: Path, option: str) -> None:
    done = shell('"$@"', str(image), option, b"\xff")

    assert done.returncode == ExitCode.USAGE
    assert option.encode() in done.stderr


def test_paths_that_are_not_utf8(image: Path) -> None:
    odd = os.fsencode(image.parent) + b"/\xff.eif"
    image.rename(os.fsdecode(odd))

    assert shell('"$@"', odd, "--json").returncode == ExitCode.ENDED
    assert shell('"$@"', b"\xff").returncode == ExitCode.IMAGE


@pytest.mark.parametrize("limit", [5, 7, 9, 11, 13, 15, 17])
def test_few_open_files(image: Path, limit: int) -> None:
    socket_path = image.with_name("vsock")

    done = shell(f'ulimit -n {limit}; "$@"', str(image), "--vsock-path", str(socket_path))

    assert done.returncode in (ExitCode.ENDED, ExitCode.HOST) or b"Fatal Python error" in done.stderr
    assert done.returncode != ExitCode.HOST or b"ulimit -n" in done.stderr
    assert not socket_path.exists()


def test_little_address_space(image: Path) -> None:
    # Emulated, because that takes far more than the guest's memory.
    done = shell('ulimit -v 400000; "$@"', str(image), "--memory-mib", "64", "--accel", "unicorn")

    assert done.returncode == ExitCode.HOST
    assert b"hint: raise the limit (ulimit -v)" in done.stderr


@pytest.mark.parametrize(
    "number",
    [
        *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1),
        *(signal.SIGUSR2, signal.SIGALRM, signal.SIGXCPU),
    ],
)
def test_a_signal_ends_the_enclave_and_leaves_nothing(spinning_image: Path, number: signal.Signals) -> None:
    socket_path = spinning_image.with_name("vsock")
    command = [*VMM, "run", "--console", str(spinning_image), "--vsock-path", str(socket_path)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(2)

    process.send_signal(number)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 128 + number
    assert b"ended by " in said
    assert not socket_path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("options", [(), ("--publish", "unix:port:5000", "--json")])
def test_a_signal_during_the_measurement_is_not_waited_for(
    vast_image: Path, options: tuple[str, ...], number: signal.Signals
) -> None:
    before = set(vast_image.parent.iterdir())
    process = subprocess.Popen(
        [*VMM, "run", str(vast_image), *options],
        cwd=vast_image.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    pause = threading.Event()
    while vast_image.name not in Path(f"/proc/{process.pid}/maps").read_text():
        pause.wait(0.01)

    process.send_signal(number)
    printed, said = process.communicate(timeout=60)

    name = "Ctrl-C" if number is signal.SIGINT else number.name
    assert (process.returncode, printed) == (128 + number, b"")
    assert said.decode().splitlines()[-1] == f"vmm: ended by {name} before the guest ran"
    assert set(vast_image.parent.iterdir()) == before


def test_a_hangup_that_is_ignored(image: Path) -> None:
    done = shell("trap '' HUP; kill -HUP $$; \"$@\"", str(image))

    assert (done.returncode, done.stdout) == (ExitCode.ENDED, b"hi")


def test_an_image_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    done = shell('"$@"', str(tmp_path / "pipe"))

    assert done.returncode == ExitCode.IMAGE
    assert b"this is a named pipe" in done.stderr


def test_an_image_that_is_a_device() -> None:
    done = shell('"$@"', "/dev/zero")

    assert done.returncode == ExitCode.IMAGE
    assert b"this is a character device" in done.stderr


def test_standard_input_is_a_terminal_but_not_the_controlling_one(image: Path) -> None:
    controller, terminal = os.openpty()

    done = subprocess.run(
        [*VMM, "run", "--console", str(image)],
        stdin=terminal,
        capture_output=True,
        start_new_session=True,
        check=False,
    )
    os.close(controller)
    os.close(terminal)

    assert (done.returncode, done.stdout) == (ExitCode.ENDED, b"hi")


ESCAPE = "a\x1b]0;title\x07\x9bb"
"""What would change the title of a terminal, and move its cursor."""


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ("run", ESCAPE),
            ("run", "x", "--name", ESCAPE),
            ("run", "x", "--config", ESCAPE),
            ("explain", ESCAPE),
        ),
        *(
            ("describe", ESCAPE),
            ("logs", ESCAPE),
            ("snapshot", ESCAPE, "-o", ESCAPE),
            ("cache", "rm", ESCAPE),
        ),
        *(("init", ESCAPE), ("attest", ESCAPE), (ESCAPE,), ("ps", ESCAPE), ("run", "x", "--from", ESCAPE)),
        *(("run", "x", f"--kms={ESCAPE}"), ("run", "x", "--from-qemu", f"-M nitro-enclave -{ESCAPE} x")),
        ("nitro-cli", "run-enclave", "--eif-path", ESCAPE, "--memory", "64", "--cpu-count", "1"),
        *(("nitro-cli", "console", "--enclave-name", ESCAPE), ("nitro-cli", ESCAPE)),
    ],
)
def test_no_message_has_escape_sequences(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = subprocess.run([*VMM, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "\\x1b]0;title" in done.stderr
    assert all(letter.isprintable() or letter == "\n" for letter in done.stdout + done.stderr)
    assert list(tmp_path.iterdir()) == []
