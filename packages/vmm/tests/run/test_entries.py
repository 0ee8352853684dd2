"""Who runs, as any command finds it: names, CIDs, and what is left of those that were killed."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nitro_vmm.errors import HostError, UsageError
from nitro_vmm.run.registry import (
    ENDED,
    KILLED,
    RUNNING,
    Entry,
    Registration,
    control_address,
    directory_of,
    entries,
    find,
    kill,
    process_of,
    remove,
    runtime_directory,
)

WANTED = Entry(name="", pid=os.getpid(), image="/images/hello.eif", cid=0, started_at=1.5)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "nitro-vmm"


@pytest.fixture
def registered() -> Iterator[Registration]:
    registration = Registration(WANTED, "hello")
    yield registration
    registration.close()


def test_an_entry_is_found_by_name_and_by_id(registered: Registration) -> None:
    registered.update(status=RUNNING, id="i-1-enc2", memory_mib=64)

    assert find("hello") == find("i-1-enc2") == registered.entry
    assert find("hello").memory_mib == 64
    assert entries() == [registered.entry]


def test_nobody_of_that_name(registered: Registration) -> None:
    with pytest.raises(UsageError) as caught:
        find("nobody")

    assert caught.value.hint == "there are: hello"
    assert caught.value.code == "M10"


def test_nobody_at_all() -> None:
    with pytest.raises(UsageError) as caught:
        find("nobody")

    assert caught.value.hint == "vmm run -d EIF"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("/images/hello.eif", "hello"),
        ("hello", "hello"),
        ("my image (1).eif", "my_image__1_"),
        ("ümlaut.eif", "_mlaut"),
        ("a-b.c_d.eif", "a-b.c_d"),
        (".-.hidden", "hidden"),
        ("...", "enclave"),
        ("x" * 57, "x" * 56),
    ],
)
def test_the_name_is_the_images(image: str, name: str) -> None:
    registration = Registration(replace(WANTED, image=image), None)
    registration.close(forget=True)

    assert registration.entry.name == name


def test_names_are_counted_and_cids_are_the_first_free_ones() -> None:
    registrations = [Registration(WANTED, None) for _ in range(3)]
    registrations[1].close(forget=True)
    again = Registration(WANTED, None)

    assert [one.entry.name for one in (*registrations, again)] == ["hello", "hello_1", "hello_2", "hello_1"]
    assert [one.entry.cid for one in (*registrations, again)] == [16, 17, 18, 17]
    for one in (registrations[0], registrations[2], again):
        one.close(forget=True)


def test_a_cid_that_is_taken(registered: Registration) -> None:
    with pytest.raises(UsageError, match="the CID 16 is taken") as caught:
        Registration(replace(WANTED, cid=16), "other")

    assert caught.value.code == "M12"
    assert [entry.name for entry in entries()] == ["hello"]


def test_a_name_that_is_taken(registered: Registration) -> None:
    with pytest.raises(UsageError, match="there is an enclave hello, and it is running"):
        Registration(WANTED, "hello")


def test_the_name_of_one_that_has_ended_is_free_and_its_files_go(registered: Registration) -> None:
    (registered.directory / "console.log").write_text("old")
    registered.update(status=ENDED)

    again = Registration(WANTED, "hello")
    again.close()

    assert again.entry.cid == 16
    assert not (again.directory / "console.log").exists()


def test_one_that_ended_in_order_stays_as_it_wrote(registered: Registration) -> None:
    registered.update(status=ENDED, report={"ExitCode": 0})

    assert find("hello").status == ENDED
    assert find("hello").report == {"ExitCode": 0}


def test_one_whose_process_is_gone_was_killed_and_leaves_no_sockets(tmp_path: Path) -> None:
    left, used, file = tmp_path / "left", tmp_path / "used", tmp_path / "file"
    for path in (left, used):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        if path is left:
            listener.close()
    listener.listen()
    file.write_text("no socket")
    sockets = [str(path) for path in (left, used, file, tmp_path / "absent")]
    registration = Registration(replace(WANTED, sockets=sockets), "hello")
    registration.update(status=RUNNING)
    (registration.directory / "control").touch()
    os.close(registration._lock)  # what the kernel does when a process is killed

    assert find("hello").status == KILLED
    assert [path.exists() for path in (left, used, file)] == [False, True, True]
    assert not (registration.directory / "control").exists()
    listener.close()


def test_a_socket_of_packets_that_somebody_listens_at_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "packets"))
        listener.listen()
        registration = Registration(replace(WANTED, sockets=[str(tmp_path / "packets")]), "hello")
        os.close(registration._lock)

        assert find("hello").status == KILLED
        assert (tmp_path / "packets").exists()


def test_only_one_that_has_ended_is_removed(registered: Registration) -> None:
    with pytest.raises(UsageError, match="hello is running"):
        remove(find("hello"))
    assert registered.directory.exists()

    registered.update(status=ENDED)
    remove(find("hello"))
    assert not registered.directory.exists()


def test_a_process_is_killed_only_while_it_is_the_enclaves(registered: Registration) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        # The number of a process that has ended may be another's by now.
        kill(replace(registered.entry, pid=stranger.pid))
        assert stranger.poll() is None

        registered.update(pid=stranger.pid)
        with process_of(registered.entry) as pidfd:
            assert pidfd is not None
        kill(registered.entry)
        assert stranger.wait(60) == -signal.SIGKILL

    with process_of(registered.entry) as pidfd:
        assert pidfd is None


def test_what_is_no_entry_is_passed_over(registered: Registration, runtime: Path) -> None:
    for name, text in (("garbage", "{"), ("list", "[]"), ("fields", '{"name": "x"}')):
        (runtime / name).mkdir()
        (runtime / name / "lock").touch()
        (runtime / name / "state.json").write_text(text)
    (runtime / "empty").mkdir()
    (runtime / "long").mkdir()
    (runtime / "long" / "lock").touch()
    (runtime / "long" / "state.json").write_text('"' + "x" * (1 << 20) + '"')

    assert [entry.name for entry in entries()] == ["hello"]


def test_what_was_half_made_by_one_that_was_killed_goes(runtime: Path) -> None:
    runtime_directory()
    (runtime / ".new-x").mkdir()

    Registration(WANTED, "hello").close(forget=True)

    assert [path.name for path in runtime.iterdir()] == [".lock"]


def test_only_the_user_may_use_the_directory(registered: Registration, runtime: Path) -> None:
    assert runtime.stat().st_mode & 0o777 == 0o700
    assert directory_of(registered.entry) == runtime / "hello"

    for mode in (0o701, 0o710, 0o720, 0o740, 0o702, 0o704):
        runtime.chmod(mode)
        with pytest.raises(HostError, match="only you may use"):
            entries()
    runtime.chmod(0o700)


def test_a_file_in_the_directorys_place(runtime: Path) -> None:
    runtime.touch(0o600)

    with pytest.raises(HostError) as caught:
        entries()

    assert caught.value.code == "M14"


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)

    with socket.socket(socket.AF_UNIX) as listener, control_address(deep) as address:
        listener.bind(address)

    assert (deep / "control").is_socket()


def test_what_a_process_leaves_when_it_ends() -> None:
    registration = Registration(WANTED, "hello")
    (registration.directory / "control").touch()
    registration.update(status=ENDED)

    registration.close()

    assert sorted(path.name for path in registration.directory.iterdir()) == ["lock", "state.json"]
