"""``vmm run --detach``: the enclave gets a process of its own, and the command returns when it runs.

The command itself only starts that process and waits for its word, so it need not load what an enclave needs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from nitro_vmm.cli import codes, launching
from nitro_vmm.cli.command import PROGRAM, complain, say
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.cli.streams import tell
from nitro_vmm.errors import VmmError

if TYPE_CHECKING:
    from nitro_vmm.enclave.enclave import Enclave
    from nitro_vmm.enclave.outcome import Result
    from nitro_vmm.run.registry import Entry

MESSAGE_BYTES_MAX: Final = 1 << 16


def launch(arguments: argparse.Namespace) -> int:
    """Start the process, and say which enclave it is."""
    code, started, said = start(arguments.argv)
    if started is not None:
        print(json.dumps(started, indent=2) if arguments.json else started["Name"])
    elif said:
        tell(said)
    else:
        complain(
            "the enclave's process ended before it said anything",
            code=ExitCode.FAILED,
            name=codes.NOTHING_SAID,
        )
    return code


def start(argv: list[str]) -> tuple[int, dict[str, Any] | None, str]:
    """Start an enclave in the background.

    Args:
        argv: A command line that begins with ``run``.

    Returns:
        The exit code of ``vmm run``, the enclave if it runs, and what its process said if it does not.
    """
    ready, word = os.pipe()
    with os.fdopen(ready, "rb") as answer, tempfile.TemporaryFile() as messages:
        # -P: a file of the current directory must not be taken for a module.
        command = [sys.executable, "-P", "-m", "nitro_vmm", "run", "--ready-fd", str(word), *argv[1:]]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            start_new_session=True,
            pass_fds=[word],
        )
        os.close(word)
        try:
            line = answer.read()
        except KeyboardInterrupt:
            process.terminate()  # nobody knows of it yet
            raise
        if line:
            started: dict[str, Any] = json.loads(line)
            return ExitCode.ENDED, started, ""
        code = process.wait()
        messages.seek(0)
        text = messages.read(MESSAGE_BYTES_MAX).decode(errors="replace").rstrip()
    if code < 0:
        killed = f"{PROGRAM}: error: the enclave's process was killed by signal {-code} ({codes.KILLED})"
        text = f"{text}\n{killed}".lstrip()
    return code if code > 0 else ExitCode.FAILED, None, text


def run_detached(arguments: argparse.Namespace) -> int:
    """Be the enclave's process, for `start`."""
    from nitro_vmm.cli.configure import config_of  # noqa: PLC0415 - so that `launch` need not wait for it
    from nitro_vmm.cli.problems import complain_of  # noqa: PLC0415

    path = None
    try:
        config = config_of(arguments)
        path = config.eif_path
        timeline_file = None
        if arguments.timeline is not None:
            from nitro_vmm.cli.timeline_file import TimelineFile  # noqa: PLC0415 - few want one

            timeline_file = TimelineFile(arguments.timeline, path)

        def note_end(enclave: "Enclave", result: "Result") -> None:
            if timeline_file is not None:
                with told():
                    timeline_file.write(enclave.timeline, result)

        from nitro_vmm.run.detached import see_through  # noqa: PLC0415

        see_through(
            config,
            started=lambda entry: _started(entry, arguments.ready_fd),
            report=_report,
            ended=note_end,
            forget=arguments.rm,
            say=say,
        )
    except Exception as error:  # noqa: BLE001 - what is not known there is raised again
        return complain_of(error, path, daemon=arguments.vhost_user_path is not None)
    finally:
        launching.end()
    return ExitCode.ENDED


@contextmanager
def told() -> Iterator[None]:
    """Tell an error, and go on."""
    try:
        yield
    except VmmError as error:
        complain(error, hint=error.hint, code=ExitCode.HOST, name=error.code)


def _started(entry: "Entry", ready_fd: int) -> None:
    launching.end()
    from nitro_vmm.cli.ps import as_json  # noqa: PLC0415
    from nitro_vmm.run.registry import directory_of  # noqa: PLC0415

    # From now on, what is said goes where `vmm logs --messages` finds it.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    messages = os.open(directory_of(entry) / "messages.log", flags, 0o600)
    os.dup2(messages, sys.stderr.fileno())
    os.close(messages)
    with suppress(OSError):  # whoever launched it was killed meanwhile; `vmm ps` shows it
        os.write(ready_fd, json.dumps(as_json(entry)).encode())
    os.close(ready_fd)


def _report(result: "Result", signal: int | None) -> dict[str, Any]:
    from nitro_vmm.cli.report import exit_code_of, report  # noqa: PLC0415

    return report(result, exit_code_of(result, signal))
