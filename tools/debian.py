"""Debian packages for guests, fetched through apt as an ordinary user: ``python tools/debian.py PACKAGE...``.

apt works here on directories of its own under ``.cache/debian``: it neither reads nor changes what the system
has installed. The mirror, proxies and credentials are those of the system's configuration; every file is
checked through Debian's archive keyring, as the system's own apt would. What is there already is not fetched
again, and needs no network.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

SUITE = "trixie"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "debian" / SUITE
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "DEBIAN_MIRROR"
# What a Debian system may subscribe to in the main archive; a mirror that has any of them has SUITE.
DEBIAN_RELEASES = {
    *("stable", "oldstable", "oldoldstable", "testing", "unstable"),
    *("bullseye", "bookworm", "trixie", "forky", "duke", "sid"),
}


class DebianError(Exception):
    """A package cannot be had; the message says why and what to do."""


def mirror() -> str:
    """The URL of Debian's main archive in the system's apt configuration, or in ``DEBIAN_MIRROR``.

    Raises:
        DebianError: apt is absent, or knows no Debian archive.
    """
    if chosen := os.environ.get(MIRROR_VARIABLE):
        return chosen
    if shutil.which("apt-get") is None:
        raise DebianError(
            "the guest is made of Debian packages, and this system has no apt-get to fetch and check them: "
            "run this on Debian, or in a container of it"
        )
    targets = subprocess.run(
        ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"],
        capture_output=True,
        text=True,
        check=False,
    )
    archives = {
        uri
        for uri, release, component in (line.split() for line in targets.stdout.splitlines())
        if release in DEBIAN_RELEASES and component == "main"
    }
    if not archives:
        raise DebianError(
            f"apt's configuration here names no Debian archive: set {MIRROR_VARIABLE} to the URL of one, "
            "and install the package debian-archive-keyring to check its signature"
        )
    # Some vendors' repositories call their suites by Debian's names; Debian's own path ends in "debian".
    return min(archives, key=lambda uri: (urlsplit(uri).path.strip("/").rpartition("/")[2] != "debian", uri))


class Apt:
    """apt for one suite, on directories of its own.

    Args:
        directory: where its state and the packages are kept.
        suite: which release of Debian.
        architecture: what the packages are for, in Debian's words.
    """

    def __init__(self, directory: Path = CACHE, *, suite: str = SUITE, architecture: str = "amd64") -> None:
        self._directory = directory
        self._suite = suite
        self._architecture = architecture
        self._updated = False

    def package(self, name: str) -> Path:
        """The ``.deb`` of a package; of a metapackage of the kernel, that of the kernel itself.

        Raises:
            DebianError: it cannot be fetched.
        """
        return self._keep(name, lambda target: self._run("download", self._real_name(name), cwd=target))

    def closure(self, name: str, *packages: str) -> Path:
        """A directory with the ``.deb`` files of a minimal system and of the given packages.

        Args:
            name: what to call the set in the cache.
            packages: what to have besides all that Debian marks as essential.

        Raises:
            DebianError: it cannot be fetched.
        """

        def fetch(target: Path) -> None:
            (target / "partial").mkdir()
            self._run(
                *("-o", f"Dir::Cache::archives={target}", "-o", "APT::Install-Recommends=false"),
                *("install", "--download-only", "--yes", "?essential", *packages),
            )
            (target / "lock").unlink(missing_ok=True)
            (target / "partial").rmdir()

        return self._keep(name, fetch).parent

    def requirements(self, name: str) -> list[str]:
        """The names of the packages that a package depends on.

        Raises:
            DebianError: the index cannot be fetched, or has no such package.
        """
        self._update()
        record = self._run("show", name, command="apt-cache")
        depends = re.search(r"^Depends: (.*)$", record, re.MULTILINE)
        return re.findall(r"(?:^|, )([^\s,|(]+)", depends[1]) if depends else []

    def _keep(self, name: str, fetch: Callable[[Path], object]) -> Path:
        """One of the files in the cache's directory `name`, which is made whole or not at all."""
        directory = self._directory / name
        if not directory.is_dir():
            self._update()
            unfinished = self._directory / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            fetch(unfinished)
            unfinished.rename(directory)
        found = sorted(directory.glob("*.deb"))
        if not found:
            raise DebianError(f"{directory} holds no package: remove the directory and try again")
        return found[0]

    def _real_name(self, name: str) -> str:
        """A kernel's metapackage depends on the package of the current version, which holds the files."""
        if not name.startswith("linux-image-"):
            return name
        record = self._run("show", name, command="apt-cache")
        depends = re.search(r"^Depends: (linux-image-\d\S*)", record, re.MULTILINE)
        return depends[1] if depends else name

    def _update(self) -> None:
        """Fetch the suite's index, whose signature vouches for every package; once is enough."""
        if self._updated:
            return
        source = mirror()
        if not KEYRING.exists():
            raise DebianError(
                f"{KEYRING} is missing, so nothing can be checked: install the package debian-archive-keyring"
            )
        for directory in ("state/lists/partial", "cache/archives/partial"):
            (self._directory / directory).mkdir(parents=True, exist_ok=True)
        (self._directory / "state" / "status").touch()
        (self._directory / "sources.list").write_text(
            f"deb [signed-by={KEYRING}] {source} {self._suite} main\n"
        )
        say(f"reading the index of Debian {self._suite} into {self._directory}")
        self._run("update")
        self._updated = True

    def _run(self, *arguments: str, command: str = "apt-get", cwd: Path | None = None) -> str:
        """Run apt; what it says of its progress goes to standard error as it comes."""
        settings = {
            "Dir::Etc::SourceList": self._directory / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State": self._directory / "state",
            "Dir::State::status": self._directory / "state" / "status",
            "Dir::Cache": self._directory / "cache",
            "APT::Architecture": self._architecture,
            "APT::Architectures": self._architecture,
            "APT::Sandbox::User": "",  # there is nobody to change to
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        options = [argument for key, value in settings.items() for argument in ("-o", f"{key}={value}")]
        answers = command == "apt-cache"
        try:
            done = subprocess.run(
                [command, *options, *arguments],
                stdout=subprocess.PIPE if answers else sys.stderr,
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                text=True,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            raise DebianError(
                f"{command} {arguments[0]} failed, see its messages above. Without a network nothing can be "
                "fetched the first time; an unknown key means that debian-archive-keyring is too old for "
                f"{self._suite}; {MIRROR_VARIABLE} can name another mirror"
            ) from error
        return done.stdout or ""


DEBIAN = Apt()
"""What all tools share, so that the index is read once."""


def say(text: str) -> None:
    """Tell the user what goes on."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Fetch the packages named on the command line; print where they are."""
    try:
        for name in sys.argv[1:]:
            package = DEBIAN.package(name)
            print(package)
            say(f"{name}: {package.name}, {package.stat().st_size / 2**20:.1f} MiB")
    except DebianError as error:
        say(f"error: {error}")
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
