"""``eif kernel``: Debian's packages come through the system's apt, from whom they should, and stay."""

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from debian_packages import KERNEL, package
from nitro_eif.build import debian
from nitro_eif.cli import EXIT_HOST, EXIT_OK, EXIT_USAGE, main

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt on this machine")
needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="no gpg to sign an archive with")

NAME = "linux-image-cloud-amd64"
REAL_NAME = "linux-image-6.12.1-cloud-amd64"


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


# The mirror.


@needs_apt
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


@needs_apt
def test_one_line_sources_with_options(sources: Path) -> None:
    (sources / "debian.list").write_text(
        "deb [arch=amd64] https://mirror.example/some/debian stable main contrib # a comment\n"
        "deb-src https://other.example/debian stable main\n"
    )

    assert debian.mirror() == "https://mirror.example/some/debian/"


@needs_apt
def test_a_vendor_that_names_its_suites_as_debian_does_is_passed_over(sources: Path) -> None:
    (sources / "a-vendor.list").write_text("deb https://apt.vendor.example bookworm main\n")
    (sources / "debian.list").write_text("deb https://mirror.example/debian bookworm main\n")

    assert debian.mirror() == "https://mirror.example/debian/"


@needs_apt
def test_a_system_without_a_debian_archive_is_told_what_to_do(sources: Path) -> None:
    (sources / "ubuntu.list").write_text("deb http://archive.example/ubuntu noble main\n")

    with pytest.raises(debian.DebianError, match="names no Debian archive") as caught:
        debian.mirror()
    assert "DEBIAN_MIRROR" in caught.value.hint


@needs_apt
def test_the_user_s_own_mirror_goes_first(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sources / "debian.list").write_text("deb https://mirror.example/debian bookworm main\n")
    monkeypatch.setenv(debian.MIRROR_VARIABLE, "https://own.example/debian")

    assert debian.mirror() == "https://own.example/debian"


# What is there, and what cannot be had.


def test_a_package_that_is_there_needs_neither_apt_nor_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    there = tmp_path / "hello" / "hello_1.0_amd64.deb"
    there.parent.mkdir()
    there.touch()

    assert debian.Apt(tmp_path).package("hello") == there


def test_without_apt_it_says_where_to_run_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(debian.MIRROR_VARIABLE, raising=False)

    with pytest.raises(debian.DebianError, match="no apt-get"):
        debian.Apt(tmp_path).package("hello")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--", "-o"], "not the name of a package"),
        (["../evil"], "not the name of a package"),
        (["--suite", "../evil"], "not the name of a release"),
    ],
)
def test_mistakes(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernel", *arguments]) == EXIT_USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert why in said.err
    assert "hint:" in said.err


@needs_apt
def test_a_cache_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    assert main(["kernel", "--directory", str(tmp_path / "file" / "in")]) == EXIT_HOST
    assert "cannot be used" in capsys.readouterr().err


@needs_apt
@pytest.mark.parametrize("url", ["mirror.example/debian", "https://a.example [trusted=yes]"])
def test_a_mirror_that_is_not_a_url(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernel", "--directory", str(tmp_path), "--mirror", url]) == EXIT_HOST
    assert "is not the URL of a mirror" in capsys.readouterr().err


# An archive, signed by a key of ours.


@dataclass(frozen=True)
class Archive:
    """A Debian archive in a directory."""

    root: Path
    keyring: Path
    home: Path

    @property
    def arguments(self) -> list[str]:
        """What has ``eif kernel`` use it."""
        cache = self.root.parent / "cache"
        mirror = ["--mirror", f"file://{self.root}", "--directory", str(cache)]
        return ["kernel", *mirror, "--keyring", str(self.keyring)]

    def publish(self, deb: bytes) -> Path:
        """Have the kernel's package in it, and an index that is signed; returns the package's place."""
        pool = self.root / "pool" / f"{REAL_NAME}_6.12.1-1_amd64.deb"
        pool.parent.mkdir(exist_ok=True, parents=True)
        pool.write_bytes(deb)
        index = f"""\
Package: {NAME}
Version: 6.12.1-1
Architecture: amd64
Depends: {REAL_NAME} (= 6.12.1-1)
Filename: pool/meta.deb
Size: 1
SHA256: {"0" * 64}

Package: {REAL_NAME}
Version: 6.12.1-1
Architecture: amd64
Filename: pool/{pool.name}
Size: {len(deb)}
SHA256: {hashlib.sha256(deb).hexdigest()}
""".encode()
        suite = self.root / "dists" / debian.SUITE
        packages = suite / "main" / "binary-amd64" / "Packages"
        packages.parent.mkdir(parents=True, exist_ok=True)
        packages.write_bytes(index)
        digest = hashlib.sha256(index).hexdigest()
        release = suite / "Release"
        release.write_text(
            f"Suite: {debian.SUITE}\nCodename: {debian.SUITE}\nArchitectures: amd64\nComponents: main\n"
            "Date: Thu, 01 Jan 2026 00:00:00 UTC\n"
            f"SHA256:\n {digest} {len(index)} main/binary-amd64/Packages\n"
        )
        (suite / "InRelease").unlink(missing_ok=True)
        self.gpg("--clearsign", "--output", str(suite / "InRelease"), str(release))
        return pool

    def gpg(self, *arguments: str) -> None:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--passphrase", "", *arguments]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "GNUPGHOME": ""})


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """The key, made once."""
    directory = tmp_path_factory.mktemp("archive")
    home = directory / "gpg"
    home.mkdir(mode=0o700)
    archive = Archive(directory, directory / "keyring.gpg", home)
    archive.gpg("--quick-generate-key", "archive@example", "ed25519", "sign", "never")
    archive.gpg("--output", str(archive.keyring), "--export")
    return archive


@pytest.fixture
def archive(tmp_path: Path, signer: Archive, monkeypatch: pytest.MonkeyPatch) -> Archive:
    monkeypatch.delenv(debian.MIRROR_VARIABLE, raising=False)
    root = tmp_path / "debian"
    root.mkdir()
    return Archive(root, signer.keyring, signer.home)


@needs_apt
@needs_gpg
def test_a_kernel_is_fetched_kept_and_built_with(
    archive: Archive, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    built = package(tmp_path / "built.deb", {}).read_bytes()
    archive.publish(built)

    assert main(archive.arguments) == EXIT_OK
    path = Path(capfd.readouterr().out.strip())
    shutil.rmtree(archive.root)
    assert main([*archive.arguments, "--json"]) == EXIT_OK
    kept = json.loads(capfd.readouterr().out)

    assert path.read_bytes() == built
    assert kept == {"Package": NAME, "Path": str(path), "Bytes": len(built)}
    (tmp_path / "root").mkdir()
    build = ["build", "--kernel-package", str(path), "--rootfs", str(tmp_path / "root"), "--cmd", "/app"]
    assert main([*build, "--output", str(tmp_path / "app.eif")]) == EXIT_OK
    assert KERNEL in (tmp_path / "app.eif").read_bytes()


@needs_apt
@needs_gpg
def test_the_newest_replaces_what_is_there(archive: Archive, capfd: pytest.CaptureFixture[str]) -> None:
    archive.publish(b"old")
    assert main(archive.arguments) == EXIT_OK
    archive.publish(b"new")

    assert main(archive.arguments) == EXIT_OK
    assert Path(capfd.readouterr().out.split()[-1]).read_bytes() == b"old"
    assert main([*archive.arguments, "--newest"]) == EXIT_OK
    assert Path(capfd.readouterr().out.strip()).read_bytes() == b"new"


@needs_apt
@needs_gpg
def test_what_nobody_vouches_for_is_refused(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    careless = tmp_path / "careless.conf"  # a system that would take anything
    careless.write_text(
        'APT::Get::AllowUnauthenticated "true"; Acquire::AllowInsecureRepositories "true"; '
        'Acquire::AllowDowngradeToInsecureRepositories "true";'
    )
    monkeypatch.setenv("APT_CONFIG", str(careless))
    deb = archive.publish(b"genuine")
    signed = archive.root / "dists" / debian.SUITE / "InRelease"
    genuine = signed.read_text()

    deb.write_bytes(b"altered")
    codes = [main(archive.arguments)]
    deb.write_bytes(b"genuine")
    signed.write_text(genuine.replace("Date: Thu, 01", "Date: Fri, 02"))
    codes.append(main(archive.arguments))
    signed.unlink()
    codes.append(main(archive.arguments))
    said = capfd.readouterr()

    assert codes == [EXIT_HOST] * 3
    assert said.out == ""
    assert not list((tmp_path / "cache").rglob("*.deb"))
