"""Debian packages for guests, fetched through the system's apt as an ordinary user.

apt works here on directories of its own: it neither reads nor changes what the system has installed. The
mirror, proxies and credentials are those of the system's configuration. Every file is checked as the system's
own apt would: a keyring vouches for the suite's Release file, that for the index, and the index for the
package. What is there already is not fetched again, and needs no network.

Only the standard library is needed, because the repository's tools use this before anything is installed.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from nitro_eif.errors import HostError

SUITE: Final = "trixie"
"""Debian 13: the first stable release whose kernel has the security module's driver."""
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE: Final = "DEBIAN_MIRROR"
RELEASES: Final = {
    *("stable", "oldstable", "oldoldstable", "testing", "unstable"),
    *("bullseye", "bookworm", "trixie", "forky", "duke", "sid"),
}
"""What a Debian system may subscribe to in the main archive; a mirror that has any of them has `SUITE`."""
PACKAGE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+")
"""Debian Policy §5.6.7, so that a name is neither an option nor a path."""
SUITE_NAME: Final = re.compile(r"[a-z][a-z0-9-]*")


class DebianError(HostError):
    """A package cannot be had."""


def cache_directory() -> Path:
    """Where packages are kept: ``$XDG_CACHE_HOME/nitro-eif``, by default ``~/.cache/nitro-eif``.

    Raises:
        DebianError: The user has no home directory.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "nitro-eif"
    try:
        return Path.home() / ".cache" / "nitro-eif"
    except RuntimeError as error:
        raise DebianError(
            "there is no home directory to keep packages in", hint="set XDG_CACHE_HOME to a directory"
        ) from error


def mirror() -> str:
    """The URL of Debian's main archive in the system's apt configuration, or in ``DEBIAN_MIRROR``.

    Raises:
        DebianError: apt is absent, or knows no Debian archive.
    """
    if chosen := os.environ.get(MIRROR_VARIABLE):
        return chosen
    targets = subprocess.run(
        ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = (line.split() for line in targets.stdout.splitlines())
    archives = {
        words[0] for words in found if len(words) == 3 and words[1] in RELEASES and words[2] == "main"
    }
    if not archives:
        raise DebianError(
            "apt's configuration here names no Debian archive",
            hint=f"set {MIRROR_VARIABLE} to the URL of one, such as https://deb.debian.org/debian, "
            "and install the package debian-archive-keyring to check its signature",
        )
    # Some vendors' repositories call their suites by Debian's names; Debian's own path ends in "debian".
    return min(archives, key=lambda uri: (urlsplit(uri).path.strip("/").rpartition("/")[2] != "debian", uri))


class Apt:
    """apt for one suite, on directories of its own.

    Args:
        directory: Where its state and the packages are kept.
        suite: Debian's name of the release.
        architecture: Debian's name of the packages' processor.
        mirror: The URL of the archive; `None` is what `mirror` finds.
        keyring: Whose signature counts.
    """

    def __init__(
        self,
        directory: Path,
        *,
        suite: str = SUITE,
        architecture: str = "amd64",
        mirror: str | None = None,
        keyring: Path = KEYRING,
    ) -> None:
        self._directory = directory
        self._suite = suite
        self._architecture = architecture
        self._mirror = mirror
        self._keyring = keyring
        self._updated = False

    def package(self, name: str, *, newest: bool = False) -> Path:
        """The ``.deb`` of a package; of a metapackage of the kernel, that of the kernel itself.

        Args:
            name: The package's.
            newest: Fetch it again, even if one is there.

        Raises:
            DebianError: It cannot be fetched.
        """

        def fetch(target: Path) -> None:
            self._run("download", self._real_name(name), cwd=target)

        return self._keep(name, fetch, newest=newest)

    def closure(self, name: str, *packages: str) -> Path:
        """A directory with the ``.deb`` files of a minimal system and of the given packages.

        Args:
            name: What to call the set in the cache.
            packages: What to have besides all that Debian marks as essential.

        Raises:
            DebianError: It cannot be fetched.
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
            DebianError: The index cannot be fetched, or has no such package.
        """
        with _locked(self._directory):
            self._update()
            record = self._run("show", name, command="apt-cache")
        depends = re.search(r"^Depends: (.*)$", record, re.MULTILINE)
        return re.findall(r"(?:^|, )([^\s,|(]+)", depends[1]) if depends else []

    def _keep(self, name: str, fetch: Callable[[Path], object], *, newest: bool = False) -> Path:
        """One of the files in the cache's directory `name`, which is made whole or not at all."""
        directory = self._directory / name
        if newest or not directory.is_dir():
            if shutil.which("apt-get") is None:
                raise DebianError(
                    "Debian's packages are fetched and checked by apt, and this system has no apt-get",
                    hint="run this on Debian or Ubuntu, or in a container of it, and copy the file",
                )
            with _locked(self._directory):
                if newest or not directory.is_dir():  # another process may have made it meanwhile
                    self._replace(directory, fetch)
        found = sorted(directory.glob("*.deb"))
        if not found:
            raise DebianError(f"{directory} holds no package", hint="remove the directory and try again")
        return found[0]

    def _replace(self, directory: Path, fetch: Callable[[Path], object]) -> None:
        self._update()
        unfinished = directory.with_name(f"{directory.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        fetch(unfinished)
        shutil.rmtree(directory, ignore_errors=True)
        unfinished.rename(directory)

    def _real_name(self, name: str) -> str:
        """A kernel's metapackage depends on the package of the current version, which holds the files."""
        if not name.startswith("linux-image-"):
            return name
        record = self._run("show", name, command="apt-cache")
        depends = re.search(r"^Depends: (linux-image-\d[^\s,]*)", record, re.MULTILINE)
        return depends[1] if depends else name

    def _update(self) -> None:
        """Fetch the suite's index, whose signature vouches for every package; once is enough."""
        if self._updated:
            return
        source = self._mirror or mirror()
        if re.search(r"[\s\[\]]", source) or not urlsplit(source).scheme:
            raise DebianError(
                f"{source!r} is not the URL of a mirror", hint="for example https://deb.debian.org/debian"
            )
        if not self._keyring.exists():
            raise DebianError(
                f"{self._keyring} is missing, so nothing can be checked",
                hint="install the package debian-archive-keyring, or name another keyring",
            )
        for directory in ("state/lists/partial", "cache/archives/partial"):
            (self._directory / directory).mkdir(parents=True, exist_ok=True)
        (self._directory / "state" / "status").touch()
        (self._directory / "sources.list").write_text(
            f"deb [signed-by={self._keyring}] {source} {self._suite} main\n"
        )
        print(
            f"reading the index of Debian {self._suite} into {self._directory}", file=sys.stderr, flush=True
        )
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
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::AllowWeakRepositories": "false",
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
                f"{command} {arguments[0]} failed, see its messages above",
                hint="the first time, a network is needed; an unknown key means that the keyring is "
                f"too old for {self._suite}; {MIRROR_VARIABLE} can name another mirror",
            ) from error
        except OSError as error:
            raise DebianError(f"{command} cannot be run: {error.strerror}") from error
        return done.stdout or ""


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Have the directory for us alone: apt would fail if another one used its state."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise DebianError(
            f"{error.filename or directory} cannot be used: {error.strerror}",
            hint="name a directory that can be written",
        ) from error
