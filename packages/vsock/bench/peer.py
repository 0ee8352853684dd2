"""Fetch vhost-device-vsock, the daemon that ours is compared with, from Debian unstable.

As an ordinary user: apt with lists, cache and state of its own, and the mirror and keyring of this machine.
"""

import subprocess
from pathlib import Path

PACKAGE = "vhost-device-vsock"
SUITE = "sid"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class UnavailableError(Exception):
    """The peer cannot be had here; the message says why."""


def mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Identifier: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for line in listed:
        uri, _, label = line.partition(" ")
        if label == "Debian":
            return uri
    raise UnavailableError("apt knows no Debian mirror on this machine; run apt-get update")


def fetch(cache: Path) -> Path:
    """The peer's program, below ``cache``; downloaded if it is not there yet.

    Raises:
        UnavailableError: No apt, no mirror, no network, or no such package for this machine.
    """
    program = cache / "root/usr/bin" / PACKAGE
    if program.exists():
        return program
    try:
        for directory in ("lists/partial", "cache/archives/partial", "root", "etc"):
            (cache / directory).mkdir(parents=True, exist_ok=True)
        sources = cache / "etc/sources.list"
        sources.write_text(f"deb [signed-by={KEYRING}] {mirror()} {SUITE} main\n")
        (cache / "status").touch()
        options = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferencesparts": "-",
            "Dir::State::lists": cache / "lists",
            "Dir::State::status": cache / "status",
            "Dir::Cache": cache / "cache",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "",
            "Debug::NoLocking": "true",
        }
        apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
        subprocess.run([*apt, "update"], check=True, capture_output=True, timeout=300)
        subprocess.run([*apt, "download", PACKAGE], check=True, capture_output=True, timeout=300, cwd=cache)
        package = next(cache.glob(f"{PACKAGE}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, cache / "root"], check=True, capture_output=True)
        subprocess.run([program, "--version"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or b"").decode(errors="replace").strip().rpartition("\n")[2]
        raise UnavailableError(f"{error.cmd[0]}: {last or error}") from error
    except (OSError, StopIteration, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"cannot fetch {PACKAGE} from {SUITE}: {error}") from error
    return program
