import os
import socket
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from nitro_vmm.run import registry
from nitro_vmm.run.registry import KILLED, Entry, Registration, alive, entries

OLD_PID, NEW_PID = 1, 2


def register(pid: int) -> Registration:
    return Registration(Entry(name="", pid=pid, image="any.eif", cid=0, started_at=0.0), "same")


def test_who_takes_a_name_again_while_it_is_looked_at_is_not_taken_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    register(OLD_PID).close()  # as if it was killed: it says that it starts, and its lock is free
    is_locked = registry._is_locked
    successors: list[Registration] = []

    def be_succeeded_first(path: Path) -> bool:
        if not successors:
            monkeypatch.setattr(registry, "_is_locked", is_locked)
            successors.append(register(NEW_PID))
        return is_locked(path)

    monkeypatch.setattr(registry, "_is_locked", be_succeeded_first)
    during = [entry.pid for entry in entries() if alive(entry)]
    after = [entry.pid for entry in entries() if alive(entry)]

    with closing(successors[0]):
        assert OLD_PID not in during
        assert after == [NEW_PID]


def test_sockets_of_a_killed_process_go_unless_somebody_else_listens_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both kinds; and what is no socket stays in any case."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    stream, packets, dead, dead_packets, silent, file = (
        tmp_path / name for name in ("stream", "packets", "dead", "dead_packets", "silent", "file")
    )
    file.touch()
    killed = register(OLD_PID)
    with ExitStack() as listeners:
        for path, kind in (
            *((stream, socket.SOCK_STREAM), (packets, socket.SOCK_SEQPACKET)),
            *((dead, socket.SOCK_STREAM), (dead_packets, socket.SOCK_SEQPACKET)),
            (silent, socket.SOCK_SEQPACKET),  # it is bound, and nobody listens
        ):
            listener = listeners.enter_context(socket.socket(socket.AF_UNIX, kind))
            listener.bind(str(path))
            if path in (stream, packets):
                listener.listen()
            elif path != silent:
                listener.close()
        gone = (dead, dead_packets, silent)
        killed.update(sockets=[str(path) for path in (stream, packets, *gone, file, tmp_path / "none")])
        (killed.directory / "control").touch()
        os.close(killed._lock)

        (entry,) = entries()

        assert entry.status == KILLED
        assert [path.exists() for path in (stream, packets, file)] == [True] * 3
        assert [path.exists() for path in (*gone, killed.directory / "control")] == [False] * 4
