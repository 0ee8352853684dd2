"""Names of images on registries, as Docker and Podman write them."""

import re
import urllib.parse
from dataclasses import dataclass
from typing import Final, Self

from nitro_eif.container.documents import DIGEST
from nitro_eif.errors import UsageError

HUB: Final = "registry-1.docker.io"
"""Where Docker Hub's images are; they are called docker.io or nothing at all."""
HUB_NAMES: Final = frozenset({"docker.io", "index.docker.io", HUB})
NAME_BYTES_MAX: Final = 255

# OCI distribution-spec 1.1, "Pulling manifests".
_PATH: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_HOST: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Reference:
    """``[HOST[:PORT]/]NAME[:TAG][@DIGEST]``; without a host the image is on Docker Hub."""

    host: str
    name: str
    version: str
    """Tag or digest."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference as Docker does.

        Raises:
            UsageError: The text is not a reference.
        """
        rest, _, digest = text.partition("@")
        head, slash, tail = rest.partition("/")
        host = head if slash and ("." in head or ":" in head or head == "localhost") else "docker.io"
        path = tail if host is head else rest
        name, _, tag = path.partition(":")
        if host in HUB_NAMES:
            host = HUB
            name = name if "/" in name else f"library/{name}"
        if not _HOST.fullmatch(host) or not _PATH.fullmatch(name) or len(name) > NAME_BYTES_MAX:
            raise UsageError(
                f"{text!r} is not an image reference", hint="write it like registry.example/team/app:1.2"
            )
        if tag and not _TAG.fullmatch(tag):
            raise UsageError(f"{text!r}: {tag!r} is not a tag")
        if digest and not DIGEST.fullmatch(digest):
            raise UsageError(f"{text!r}: {digest!r} is not a sha256 or sha512 digest")
        return cls(host, name, digest or tag or "latest")

    def __str__(self) -> str:
        separator = "@" if ":" in self.version else ":"
        return f"{self.host}/{self.name}{separator}{self.version}"

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine."""
        host = urllib.parse.urlsplit(f"//{self.host}").hostname or ""
        return host in {"localhost", "::1"} or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))
