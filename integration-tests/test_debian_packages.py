"""Where guests' packages come from: the system's apt configuration, in both of its formats."""

import shutil
from pathlib import Path

import pytest

import debian

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt on this machine")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a system's package sources, empty."""
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    configuration = tmp_path / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::SourceList "/dev/null"; Dir::Etc::SourceParts "{parts}"; '
        f'Dir::State::Lists "{tmp_path}"; Dir::Etc::Parts "/dev/null";'
    )
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    monkeypatch.delenv(debian.MIRROR_VARIABLE, raising=False)
    return parts


def test_deb822_sources(sources: Path) -> None:
    (sources / "debian.sources").write_text("""\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
""")

    assert debian.mirror() == "http://mirror.example/debian/"


def test_one_line_sources_with_options(sources: Path) -> None:
    (sources / "debian.list").write_text(
        "deb [arch=amd64] https://mirror.example/some/debian stable main contrib # a comment\n"
        "deb-src https://other.example/debian stable main\n"
    )

    assert debian.mirror() == "https://mirror.example/some/debian/"


def test_a_vendor_that_names_its_suites_as_debian_does_is_passed_over(sources: Path) -> None:
    (sources / "a-vendor.list").write_text("deb https://apt.vendor.example bookworm main\n")
    (sources / "debian.list").write_text("deb https://mirror.example/debian bookworm main\n")

    assert debian.mirror() == "https://mirror.example/debian/"


def test_a_system_without_a_debian_archive_is_told_what_to_do(sources: Path) -> None:
    (sources / "ubuntu.list").write_text("deb http://archive.example/ubuntu noble main\n")

    with pytest.raises(debian.DebianError, match="DEBIAN_MIRROR"):
        debian.mirror()


def test_the_user_s_own_mirror_goes_first(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sources / "debian.list").write_text("deb https://mirror.example/debian bookworm main\n")
    monkeypatch.setenv(debian.MIRROR_VARIABLE, "https://own.example/debian")

    assert debian.mirror() == "https://own.example/debian"


def test_a_package_that_is_there_needs_neither_apt_nor_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    package = tmp_path / "hello" / "hello_1.0_amd64.deb"
    package.parent.mkdir()
    package.touch()

    assert debian.Apt(tmp_path).package("hello") == package


def test_without_apt_it_says_where_to_run_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(debian.MIRROR_VARIABLE, raising=False)

    with pytest.raises(debian.DebianError, match="no apt-get"):
        debian.Apt(tmp_path).package("hello")
    assert not list(tmp_path.iterdir())
