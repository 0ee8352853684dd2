from contextlib import closing
from pathlib import Path

import pytest

from nitro_vmm.run import registry
from nitro_vmm.run.registry import Entry, Registration, alive, entries

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
