"""Compute in a Debian user space in an enclave, and compare with this machine: ``python tools/userland.py``.

The user space is what ``debootstrap --variant=minbase`` would unpack, with Python and OpenSSL. An ordinary
user unpacks it here, and does not configure it, which neither of the two needs.
"""

import argparse
import base64
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import images
from debian import CACHE, DEBIAN, complain, say

PACKAGES = ("python3", "openssl")
UNNEEDED = (
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/i18n",
    "usr/lib/x86_64-linux-gnu/gconv",
)
MESSAGE = b"signed on the host, checked in the guest, and the other way round\n"
CURVE = ec.SECP384R1()
SIGNATURE = ec.ECDSA(hashes.SHA384())


class MismatchError(Exception):
    """The guest's results are not the host's; the message says which."""


def unpack(name: str = "userland", *wanted: str) -> Path:
    """The directory of a user space with some packages, by default those of this tool, unpacked once."""
    packages = DEBIAN.closure(name, *(wanted or PACKAGES))
    root = CACHE / f"{name}-root"
    if not root.is_dir():
        archives = sorted(packages.glob("*.deb"))
        size = sum(archive.stat().st_size for archive in archives)
        say(f"unpacking {len(archives)} packages, {size / 2**20:.0f} MiB")
        unfinished = CACHE / f"{name}-root.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        for archive in archives:
            subprocess.run(["dpkg-deb", "--extract", archive, unfinished], check=True)
        for directory in UNNEEDED:
            shutil.rmtree(unfinished / directory, ignore_errors=True)
        unfinished.rename(root)
    return root


def add_checks(root: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Put the computations into the user space, and something signed by the host."""
    directory = root / "check"
    directory.mkdir(exist_ok=True)
    for name in ("compute.py", "userland.sh"):
        shutil.copy(images.GUEST_SOURCES / name, directory / name)
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    (directory / "message").write_bytes(MESSAGE)
    (directory / "host.pub").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, public))
    (directory / "host.sig").write_bytes(key.sign(MESSAGE, SIGNATURE))


def results(text: str) -> dict[str, object]:
    """The lines ``name json`` of a console, or of a program's output."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            continue  # the kernel's lines
    return found


def compare(guest: dict[str, object], host: dict[str, object]) -> None:
    """See that the guest computed what the host did, and that signatures hold both ways.

    Raises:
        MismatchError: they do not.
    """
    for name, value in host.items():
        if name == "computed":  # by which version, which may differ
            continue
        if name not in guest:
            raise MismatchError(f"{name}: no result from the guest")
        if guest[name] != value:
            raise MismatchError(f"{name}: the guest has {guest[name]}, the host {value}")
        say(f"  {name}: equal")
    if guest.get("host-signature") != "verified":
        raise MismatchError(
            f"the guest's OpenSSL says of the host's signature: {guest.get('host-signature')}"
        )
    say("  P-384: the guest verifies the host's signature")
    try:
        key = serialization.load_der_public_key(base64.b64decode(str(guest["guest-key"])))
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise MismatchError("the guest made a key of another kind")
        key.verify(base64.b64decode(str(guest["guest-signature"])), MESSAGE, SIGNATURE)
    except (KeyError, ValueError, InvalidSignature) as error:
        raise MismatchError(f"the host does not verify the guest's signature: {error!r}") from error
    say("  P-384: the host verifies the guest's signature")


def main() -> int:
    """Run both and compare; 0 when all is equal."""
    parser = argparse.ArgumentParser(description="Compare what a guest computes with what this machine does.")
    parser.add_argument("--kernel", choices=images.KERNELS, default="debian", help="default: %(default)s")
    options = parser.parse_args()
    try:
        root = unpack()
        add_checks(root, ec.generate_private_key(CURVE))
        image = images.build("userland", options.kernel, root, "--cmd", "/bin/sh /check/userland.sh")
    except images.ERRORS as error:
        return complain(error)
    memory_mib = max(1024, 4 * image.stat().st_size >> 20)
    started = time.monotonic()
    console = images.boot(image, memory_mib)
    seconds = time.monotonic() - started
    computed = subprocess.run(
        [sys.executable, root / "check" / "compute.py"], capture_output=True, check=True
    )
    try:
        compare(results(console), results(computed.stdout.decode()))
    except MismatchError as mismatch:
        say(f"{console}\nerror: {mismatch}")
        return 1
    say(f"the guest computes what this machine computes (it took {seconds:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
