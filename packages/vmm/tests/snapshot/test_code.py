"""Which files decide whether a saved machine still means the same."""

from pathlib import Path

import pytest

import nitro_vsock
from nitro_vmm.snapshot import code

VMM, VSOCK = "nitro_vmm", "nitro_vsock"
MEANING = [
    *(f"{VMM}/{folder}/part.py" for folder in ("accel", "boot", "devices", "machine", "snapshot")),
    f"{VMM}/accel/kvm/part.py",
    f"{VMM}/accel/unicorn/native.so",
    *(f"{VSOCK}/{folder}/part.py" for folder in ("device", "virtio")),
]
OTHERS = [f"{VMM}/cli/part.py", f"{VMM}/part.py", f"{VMM}/boot/part.txt", f"{VSOCK}/host/part.py"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of both packages."""
    for name in MEANING + OTHERS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    monkeypatch.setattr(code, "__file__", str(tmp_path / VMM / "snapshot/code.py"))
    monkeypatch.setattr(nitro_vsock, "__path__", [str(tmp_path / VSOCK)])
    return tmp_path


def digest() -> bytes:
    return code.code_digest.__wrapped__()


@pytest.mark.parametrize("name", MEANING)
@pytest.mark.parametrize("change", ["content", "name", "gone"])
def test_what_a_machine_is_made_of_counts(tree: Path, name: str, change: str) -> None:
    before, path = digest(), tree / name

    match change:
        case "content":
            path.write_text("other")
        case "name":
            path.rename(path.with_stem("other"))
        case "gone":
            path.unlink()

    assert digest() != before


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_around_it_does_not_count(tree: Path, name: str) -> None:
    before = digest()

    (tree / name).write_text("other")

    assert digest() == before


def test_it_does_not_matter_where_it_is_installed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    other = tree / "elsewhere"
    for name in MEANING:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).rename(other / name)
    monkeypatch.setattr(code, "__file__", str(other / VMM / "snapshot/code.py"))
    monkeypatch.setattr(nitro_vsock, "__path__", [str(other / VSOCK)])

    assert digest() == before


def test_what_moves_from_one_file_to_the_next_is_seen(tree: Path) -> None:
    first, second = tree / VMM / "boot/a.py", tree / VMM / "boot/b.py"
    first.write_text("one")
    second.write_text("two")
    before = digest()

    first.write_text("onet")
    second.write_text("wo")

    assert digest() != before
