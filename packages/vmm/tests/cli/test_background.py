"""Enclaves in the background: launching, listing, talking to them, and their ends."""

import base64
import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nitro_nsm import parse_document
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.run.control import ask
from nitro_vmm.run.registry import control_address, runtime_directory
from vmm_command import VMM, Vmm, modules_at_the_end


def wait_until_gone(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([pidfd], [], [], 60)[0]
    os.close(pidfd)


def test_the_life_of_an_enclave(vmm: Vmm, spinning_image: Path) -> None:
    launched = vmm("run", "-d", spinning_image)
    listed = vmm("ps").stdout
    described = json.loads(vmm("describe", "spinning", "--json").stdout)
    stopped = vmm("stop", "spinning")
    waited = vmm("wait", "spinning", "--json")
    ended = vmm("ps").stdout
    removed = vmm("rm", "spinning")

    assert (launched.returncode, launched.stdout, launched.stderr) == (0, "spinning\n", "")
    assert listed.splitlines()[1].split() == [
        *("spinning", "running", "16", "512", "MiB", "production", str(spinning_image)),
    ]
    assert (described["Status"], described["EnclaveCID"], described["Mode"]) == ("running", 16, "production")
    assert (stopped.returncode, stopped.stdout) == (0, "spinning\n")
    assert waited.returncode == ExitCode.TERMINATED
    assert json.loads(waited.stdout)["Reason"] == "stopped by vmm stop"
    assert len(ended.splitlines()) == 1
    assert removed.returncode == 0
    assert vmm.entries() == {}
    assert [path.name for path in (vmm.runtime / "nitro-vmm").iterdir()] == [".lock"]


def test_its_kms_is_told_and_answers(
    vmm: Vmm, spinning_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moto", reason="the KMS is an extra: pip install 'nitro-vmm[kms]'")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    launched = vmm("run", "-d", "--kms=listen=127.0.0.1:0", "--json", spinning_image)
    host, _, port = json.loads(launched.stdout)["KMS"].rpartition(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: kms\r\n\r\n")
        answer = client.recv(1000)
    vmm("stop", "spinning")
    messages = vmm("logs", "--messages", "spinning").stdout

    assert b"UnknownOperationException" in answer
    assert "a request refused: UnknownOperationException" in messages


def test_a_document_from_outside(vmm: Vmm, spinning_image: Path, tmp_path: Path) -> None:
    vmm("run", "-d", spinning_image, "--name", "attested")
    (tmp_path / "key").write_bytes(bytes(1024))

    written = vmm("attest", "attested", "--nonce", "00ff", "--output", tmp_path / "document")
    printed = vmm("attest", "attested", "--json", "--public-key", f"@{tmp_path / 'key'}", "--user-data", "0a")
    too_long = vmm("attest", "attested", "--nonce", "00" * 4096, "--json")
    not_hexadecimal = vmm("attest", "attested", "--nonce", "xyz", "--json")
    nobody = vmm("attest", "nobody", "--json")
    vmm("terminate", "attested")

    assert (written.returncode, written.stdout, written.stderr) == (0, "", "")
    assert parse_document((tmp_path / "document").read_bytes()).nonce == b"\x00\xff"
    document = parse_document(base64.b64decode(json.loads(printed.stdout)["Document"]))
    assert (document.user_data, document.public_key) == (b"\n", bytes(1024))
    assert (too_long.returncode, "less than 4096 bytes" in too_long.stderr) == (ExitCode.USAGE, True)
    assert (not_hexadecimal.returncode, "@FILE" in not_hexadecimal.stderr) == (ExitCode.USAGE, True)
    assert nobody.returncode == ExitCode.USAGE


def test_names_and_cids_are_unique(vmm: Vmm, spinning_image: Path) -> None:
    for _ in range(3):
        vmm("run", "--detach", spinning_image)

    taken = vmm("run", "-d", spinning_image, "--name", "spinning")
    taken_cid = vmm("run", "-d", spinning_image, "--cid", "17")
    entries = vmm.entries()

    assert {name: entry["EnclaveCID"] for name, entry in entries.items()} == {
        "spinning": 16,
        "spinning_1": 17,
        "spinning_2": 18,
    }
    assert taken.returncode == taken_cid.returncode == ExitCode.USAGE
    assert "there is an enclave spinning, and it is running" in taken.stderr
    assert "the CID 17 is taken" in taken_cid.stderr


def test_waiting_for_a_heartbeat_that_does_not_come(vmm: Vmm, spinning_image: Path, image: Path) -> None:
    vmm("run", "-d", spinning_image)
    vmm("run", "-d", image)

    waiting = vmm("wait", "--booted", "spinning", "--timeout-s", "0.1")
    ended = vmm("wait", "--booted", "small")

    assert (waiting.returncode, "has not booted" in waiting.stderr) == (ExitCode.BOOT_TIMEOUT, True)
    assert (ended.returncode, ended.stdout) == (ExitCode.FAILED, "the enclave halted for good\n")


@pytest.fixture
def starting(vmm: Vmm, vast_image: Path) -> Iterator["subprocess.Popen[str]"]:
    """A command that launches an enclave, which is measured meanwhile and for ever."""
    with subprocess.Popen(
        [*VMM, "run", "-d", vast_image], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launching:
        pause = threading.Event()
        while "vast" not in vmm.entries():
            pause.wait(0.01)
        yield launching
        vmm("terminate", "--all")


def test_one_that_is_starting_is_stopped_in_order(vmm: Vmm, starting: "subprocess.Popen[str]") -> None:
    stopped = vmm("stop", "vast")

    printed, said = starting.communicate(timeout=60)
    assert (stopped.returncode, starting.returncode, printed) == (0, 143, "")
    assert said == "vmm: ended by SIGTERM before the guest ran\n"
    assert vmm.entries() == {}


def test_one_that_is_killed_while_it_starts(vmm: Vmm, starting: "subprocess.Popen[str]") -> None:
    vmm("terminate", "vast")

    _, said = starting.communicate(timeout=60)
    assert starting.returncode == ExitCode.FAILED
    assert said == "vmm: error: the enclave's process was killed by signal 9 (M31)\n"
    assert vmm.entries()["vast"]["Status"] == "killed"


def test_the_name_of_one_that_has_ended_is_free(vmm: Vmm, image: Path) -> None:
    vmm("run", "-d", image)
    vmm("wait", "small")

    vmm("run", "-d", image)
    waited = vmm("wait", "small")

    assert (waited.returncode, waited.stdout) == (0, "the enclave halted for good\n")
    assert list(vmm.entries()) == ["small"]


def test_logs_and_messages(vmm: Vmm, image: Path) -> None:
    vmm("run", "-d", "--console", image)
    vmm("wait", "small")

    assert vmm("logs", "small").stdout == "hi"
    assert vmm("logs", "-f", "small").stdout == "hi"
    assert vmm("logs", "--messages", "small").returncode == 0


def test_logs_are_followed_to_the_end(vmm: Vmm, spinning_image: Path) -> None:
    vmm("run", "-d", "--console", spinning_image)
    follower = subprocess.Popen([*VMM, "logs", "-f", "spinning"], stdout=subprocess.PIPE)
    assert follower.stdout is not None
    first = follower.stdout.read(2)

    vmm("stop", "spinning")
    rest, _ = follower.communicate(timeout=60)

    assert (first, rest, follower.returncode) == (b"hi", b"", 0)


def test_the_console_shows_what_was_printed_and_detaches(vmm: Vmm, spinning_image: Path) -> None:
    vmm("run", "-d", "--console", spinning_image)

    attached = vmm("console", "spinning", typed=b"typed\x1d")

    assert attached.returncode == 0
    assert vmm.entries()["spinning"]["Status"] == "running"


def test_an_enclave_that_shows_no_console(vmm: Vmm, spinning_image: Path) -> None:
    vmm("run", "-d", spinning_image)

    for command in ("console", "logs"):
        done = vmm(command, "spinning")
        assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
        assert "shows no console, as on AWS in production mode (M29)" in done.stderr
        assert "hint: launch it with --console" in done.stderr


def test_a_hidden_console_is_in_no_file_and_not_at_the_socket(vmm: Vmm, spinning_image: Path) -> None:
    vmm("run", "-d", spinning_image)
    directory = runtime_directory() / "spinning"

    answers = []
    for request in ("follow", "console"):
        with ask(directory, request) as control, control.makefile("rb") as answer:
            answers.append(json.loads(answer.read()))

    assert answers == [{"error": "the console is not shown"}] * 2
    assert not list(directory.glob("console.log*"))


def test_what_it_uses(vmm: Vmm, spinning_image: Path) -> None:
    vmm("run", "-d", spinning_image)

    usage = json.loads(vmm("stats", "spinning", "--json").stdout)

    assert usage["Name"] == "spinning"
    assert usage["CpuSeconds"] > 0
    assert usage["Vsock"]["connections"] == 0


def test_a_launch_that_fails_says_why_and_leaves_nothing(vmm: Vmm, tmp_path: Path) -> None:
    done = vmm("run", "-d", tmp_path / "absent.eif")

    assert (done.returncode, done.stdout) == (ExitCode.IMAGE, "")
    assert "absent.eif: No such file" in done.stderr
    assert vmm.entries() == {}


def test_names_that_nobody_has(vmm: Vmm) -> None:
    for command in ("describe", "logs", "console", "stop", "terminate", "wait", "stats", "rm"):
        done = vmm(command, "nobody")
        assert done.returncode == ExitCode.USAGE
        assert "there is no enclave nobody" in done.stderr


def test_no_names(vmm: Vmm) -> None:
    for command in ("stop", "terminate", "rm"):
        assert vmm(command).returncode == ExitCode.USAGE
        assert vmm(command, "--all").returncode == 0


def test_one_that_runs_is_not_forgotten(vmm: Vmm, spinning_image: Path) -> None:
    vmm("run", "-d", spinning_image)

    refused = vmm("rm", "spinning")
    forced = vmm("rm", "--force", "spinning")

    assert refused.returncode == ExitCode.USAGE
    assert "spinning is running" in refused.stderr
    assert forced.returncode == 0
    assert vmm.entries() == {}


def test_nothing_stays_of_one_that_was_to_be_forgotten(vmm: Vmm, image: Path) -> None:
    pid = json.loads(vmm("run", "-d", "--rm", "--json", image).stdout)["ProcessID"]

    wait_until_gone(pid)

    assert vmm.entries() == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_its_process_ends_it_in_order(
    vmm: Vmm, spinning_image: Path, number: signal.Signals
) -> None:
    pid = json.loads(vmm("run", "-d", "--json", spinning_image).stdout)["ProcessID"]

    os.kill(pid, number)
    waited = vmm("wait", "spinning")

    assert (waited.returncode, waited.stdout) == (128 + number, f"ended by {number.name}\n")


def test_one_that_was_killed_is_told_and_tidied_up(vmm: Vmm, spinning_image: Path, tmp_path: Path) -> None:
    options: list[str | Path] = [
        "--vsock-path",
        tmp_path / "vsock",
        "--publish",
        f"unix:{tmp_path / 'web'}:80",
    ]
    pid = json.loads(vmm("run", "-d", "--json", spinning_image, *options).stdout)["ProcessID"]
    assert (tmp_path / "vsock").exists()

    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    entries = vmm.entries()
    waited = vmm("wait", "spinning")

    assert entries["spinning"]["Status"] == "killed"
    assert not (tmp_path / "vsock").exists()
    assert not (tmp_path / "web").exists()
    assert waited.returncode == ExitCode.FAILED
    assert "was killed" in waited.stderr


def test_a_process_that_does_not_answer_is_killed(vmm: Vmm, spinning_image: Path) -> None:
    pid = json.loads(vmm("run", "-d", "--json", spinning_image).stdout)["ProcessID"]
    os.kill(pid, signal.SIGSTOP)

    stopped = vmm("stop", "spinning", "--timeout-s", "0.1")

    wait_until_gone(pid)
    assert stopped.returncode == 0
    assert vmm.entries()["spinning"]["Status"] == "killed"


def test_requests_that_are_none(vmm: Vmm, spinning_image: Path) -> None:
    vmm("run", "-d", spinning_image)
    directory = vmm.runtime / "nitro-vmm" / "spinning"

    for request in (b"\n", b"[]\n", b"{}\n", b'{"do": 1}\n', b"\xff\n", b"x" * 10_000, b"[" * 4000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as client, control_address(directory) as address:
            client.connect(address)
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b'{"error": "no such request"}\n'

    assert vmm.entries()["spinning"]["Status"] == "running"


def test_nobody_else_may_look(vmm: Vmm, spinning_image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vmm("run", "-d", spinning_image)
    assert (vmm.runtime / "nitro-vmm").stat().st_mode & 0o777 == 0o700

    (vmm.runtime / "nitro-vmm").chmod(0o755)
    refused = vmm("ps")
    (vmm.runtime / "nitro-vmm").chmod(0o700)

    assert refused.returncode == ExitCode.HOST
    assert "only you may use" in refused.stderr


def test_a_runtime_directory_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert runtime_directory() == tmp_path / f"nitro-vmm-{os.geteuid()}"


HEAVY = {"unicorn", "trio", "pydantic", "cryptography", "nitro_eif"}


@pytest.mark.parametrize(
    "command",
    ["ps", "describe {}", "stats {}", "logs {}", "run -d {} --name other", "stop {}", "terminate {}"],
)
def test_commands_about_others_load_no_emulator(vmm: Vmm, spinning_image: Path, command: str) -> None:
    """What they import is nearly all of the time that they take."""
    vmm("run", "-d", spinning_image)
    arguments = command.format(spinning_image if "run" in command else "spinning").split()

    imported = modules_at_the_end(*arguments)

    assert "nitro_vmm.cli.main" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("command", ["wait {}", "rm {}"])
def test_commands_about_ended_ones_load_no_emulator(vmm: Vmm, spinning_image: Path, command: str) -> None:
    vmm("run", "-d", spinning_image)
    vmm("stop", "spinning")

    imported = modules_at_the_end(*command.format("spinning").split())

    assert "nitro_vmm.cli.main" in imported
    assert not imported & HEAVY


def test_ten_at_once(vmm: Vmm, spinning_image: Path) -> None:
    launches = [
        subprocess.Popen(
            [*VMM, "run", "-d", str(spinning_image), "--memory-mib", "64"], stdout=subprocess.PIPE
        )
        for _ in range(10)
    ]
    names = {launch.communicate(timeout=120)[0].decode().strip() for launch in launches}
    entries = vmm.entries()
    vmm("stop", "--all")

    assert names == set(entries) == {"spinning", *(f"spinning_{number}" for number in range(1, 10))}
    assert len({entry["EnclaveCID"] for entry in entries.values()}) == 10
    assert {entry["Status"] for entry in vmm.entries().values()} == {"ended"}
