"""Pull images from a registry over HTTPS, without a daemon (OCI distribution-spec 1.1, "Pull").

Plain HTTP is for registries on this machine, or where the caller asks for it. Credentials come from where
``docker login`` and ``podman login`` keep them.
"""

import base64
import binascii
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

from nitro_eif.digests import Progress
from nitro_eif.errors import EifFormatError, RegistryError, UsageError
from nitro_eif.oci import DOCUMENT_BYTES_MAX
from nitro_eif.ramdisk import map_temporary
from nitro_eif.temporary import scratch_file

TIMEOUT_S: Final = 60.0
"""How long a registry may be silent."""
TRIES: Final = 4
"""How often a request is made while the registry or the network fails in passing."""
FIRST_DELAY_S: Final = 0.5
"""Before the second try; doubled for each further one."""

_ACCEPT: Final = (
    "application/vnd.oci.image.index.v1+json, "
    "application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.docker.distribution.manifest.v2+json"
)
_PIECE_BYTES: Final = 1 << 20
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_PATH: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_HUB: Final = "registry-1.docker.io"
_HUB_NAMES: Final = frozenset({"docker.io", "index.docker.io", _HUB})


@dataclass(frozen=True, slots=True)
class Reference:
    """``[HOST[:PORT]/]NAME[:TAG][@DIGEST]``; without a host it is Docker Hub's."""

    host: str
    name: str
    version: str
    """Tag or digest."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference as Docker does.

        Raises:
            UsageError: it is none.
        """
        rest, _, digest = text.partition("@")
        head, slash, tail = rest.partition("/")
        host = head if slash and ("." in head or ":" in head or head == "localhost") else "docker.io"
        path = tail if host is head else rest
        name, _, tag = path.partition(":")
        if host in _HUB_NAMES:
            host = _HUB
            name = name if "/" in name else f"library/{name}"
        if not _HOST.fullmatch(host) or not _PATH.fullmatch(name) or len(name) > 255:
            raise UsageError(f"{text!r} is no image reference, like registry.example/team/app:1.2")
        if tag and not _TAG.fullmatch(tag):
            raise UsageError(f"{text!r}: {tag!r} is no tag")
        if digest and not _DIGEST.fullmatch(digest):
            raise UsageError(f"{text!r}: {digest!r} is no sha256 or sha512 digest")
        return cls(host, name, digest or tag or "latest")

    def __str__(self) -> str:
        separator = "@" if ":" in self.version else ":"
        return f"{self.host}/{self.name}{separator}{self.version}"

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine."""
        host = urllib.parse.urlsplit(f"//{self.host}").hostname or ""
        return host in {"localhost", "::1"} or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))


class Registry:
    """One repository of a registry, as a store of an image's parts.

    Args:
        reference: the image.
        stack: closes what was downloaded.
        plain_http: talk HTTP without TLS, also to other machines.
        progress: called with bytes downloaded and the size of the present blob.
    """

    def __init__(
        self,
        reference: Reference,
        stack: ExitStack,
        *,
        plain_http: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._reference = reference
        self._stack = stack
        self._plain = plain_http or reference.is_local
        self._progress = progress
        self._authorization: str | None = None
        self._opener = urllib.request.build_opener(_Redirects(plain=self._plain))

    def root(self) -> tuple[bytes, str]:
        """Give the index or manifest that the reference names, checked where it is a digest."""
        version = self._reference.version
        with self._get(f"manifests/{version}", accept=_ACCEPT) as response:
            data = _read(response, DOCUMENT_BYTES_MAX)
            media_type = response.headers.get("Content-Type", "")
        if ":" in version:
            algorithm, _, wanted = version.partition(":")
            if hashlib.new(algorithm, data).hexdigest() != wanted:
                raise EifFormatError(
                    f"the registry's manifest is not {version}", offset=0, path=Path(self._name)
                )
        return data, media_type

    def blob(self, digest: str, size: int | None) -> memoryview:
        """Download a blob, or a manifest that an index names, into a temporary file."""
        limit = size if size is not None else DOCUMENT_BYTES_MAX
        for attempt in range(TRIES):
            try:
                file = self._stack.enter_context(scratch_file())
                self._download(digest, limit, file)
                return map_temporary(file)
            except (http.client.HTTPException, OSError) as error:
                if attempt == TRIES - 1:
                    raise RegistryError(
                        f"{self._name}: the download of {digest} broke off: {error}"
                    ) from error
                time.sleep(FIRST_DELAY_S * 2**attempt)
        raise AssertionError  # the loop returns or raises

    @property
    def _name(self) -> str:
        return str(self._reference)

    def _download(self, digest: str, size: int, file: IO[bytes]) -> None:
        with self._find(digest) as response:
            done = 0
            while data := response.read(min(_PIECE_BYTES, size - done + 1)):
                done += len(data)
                if done > size:
                    raise RegistryError(
                        f"{self._name}: the registry sends more than the {size} bytes of {digest}"
                    )
                file.write(data)
                if self._progress is not None:
                    self._progress(done, size)
        if done < size and size != DOCUMENT_BYTES_MAX:
            raise http.client.IncompleteRead(b"", size - done)

    def _find(self, digest: str) -> http.client.HTTPResponse:
        try:
            return self._get(f"blobs/{digest}", accept="*/*")
        except _NotFoundError:
            # What an index lists are manifests, which registries keep apart from blobs.
            return self._get(f"manifests/{digest}", accept=_ACCEPT)

    def _get(self, path: str, *, accept: str) -> http.client.HTTPResponse:
        scheme = "http" if self._plain else "https"
        url = f"{scheme}://{self._reference.host}/v2/{self._reference.name}/{path}"
        asked = False
        for attempt in range(TRIES):
            request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "nitro-eif"})  # noqa: S310
            if self._authorization is not None:
                # Not sent on to where a redirection leads.
                request.add_unredirected_header("Authorization", self._authorization)
            try:
                return self._open(request)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 401 and not asked:
                        asked = True
                        self._authorization = self._authorize(error.headers.get("WWW-Authenticate", ""))
                        continue
                    if error.code not in _PASSING or attempt == TRIES - 1:
                        raise self._refused(error, url) from None
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                final = isinstance(
                    reason, ssl.SSLCertVerificationError | socket.gaierror | ConnectionRefusedError
                )
                if final or attempt == TRIES - 1:
                    raise RegistryError(f"{url}: {self._unreachable(reason)}") from error
            time.sleep(FIRST_DELAY_S * 2**attempt)
        raise RegistryError(f"{url}: the registry asks for credentials again and again")

    def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        response: http.client.HTTPResponse = self._opener.open(request, timeout=TIMEOUT_S)
        return response

    def _unreachable(self, reason: object) -> str:
        if isinstance(reason, ssl.SSLError) and not isinstance(reason, ssl.SSLCertVerificationError):
            return f"no TLS there ({reason.reason}); if you trust a plain HTTP registry, use --plain-http"
        if isinstance(reason, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({reason.verify_message}); see SSL_CERT_FILE"
        return f"cannot be reached: {reason}"

    def _refused(self, error: urllib.error.HTTPError, url: str) -> RegistryError:
        match error.code:
            case 401 | 403:
                return RegistryError(
                    f"{url}: access denied ({error.code}); log in with docker login or podman login"
                )
            case 404:
                return _NotFoundError(f"{url}: there is no such image (404)")
            case 429:
                return RegistryError(f"{url}: too many requests (429); log in, or wait")
        return RegistryError(f"{url}: the registry answers {error.code} {error.reason}")

    def _authorize(self, challenge: str) -> str:
        """Answer a 401 (distribution-spec, and RFC 7235 §2.1)."""
        scheme, _, rest = challenge.partition(" ")
        parameters = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        basic = credentials(self._reference.host)
        if scheme.lower() == "basic":
            if basic is None:
                raise RegistryError(f"{self._name}: the registry wants a user and password: use docker login")
            return f"Basic {basic}"
        realm = parameters.get("realm", "")
        allowed = ("https://", "http://") if self._plain else ("https://",)
        if scheme.lower() != "bearer" or not realm.startswith(allowed):
            raise RegistryError(
                f"{self._name}: the registry wants {scheme or 'an unknown'} authentication at {realm!r}"
            )
        query = {"scope": f"repository:{self._reference.name}:pull"}
        if service := parameters.get("service"):
            query["service"] = service
        url = f"{realm}{'&' if '?' in realm else '?'}{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, headers={"User-Agent": "nitro-eif"})  # noqa: S310 - checked above
        if basic is not None:
            request.add_unredirected_header("Authorization", f"Basic {basic}")
        try:
            with self._open(request) as response:
                answer: Any = json.loads(_read(response, DOCUMENT_BYTES_MAX))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error, url) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise RegistryError(f"{url}: no token: {error}") from error
        except (ValueError, RecursionError):
            raise RegistryError(f"{url}: the token service does not answer with JSON") from None
        token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
        if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
            raise RegistryError(f"{url}: the token service gives no token")
        return f"Bearer {token}"


class _NotFoundError(RegistryError):
    pass


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but not from HTTPS to HTTP."""

    def __init__(self, *, plain: bool) -> None:
        self._plain = plain

    def redirect_request(  # the library's arguments, of which the last is the new address
        self,
        *arguments: Any,  # noqa: ANN401
    ) -> urllib.request.Request | None:
        new_url = arguments[-1]
        if not self._plain and not new_url.startswith("https://"):
            raise urllib.error.URLError(f"the registry redirects to {new_url}, which is not HTTPS")
        return super().redirect_request(*arguments)


def credentials(host: str) -> str | None:
    """Give a registry's credentials, base64 of ``user:password``, from Docker's or Podman's login file."""
    keys = {host}
    if host == _HUB:
        keys |= {"https://index.docker.io/v1/", "docker.io", "index.docker.io"}
    for path in _login_files():
        try:
            auths = json.loads(path.read_bytes()).get("auths", {})
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        for key in sorted(keys):
            entry = auths.get(key) if isinstance(auths, dict) else None
            auth = entry.get("auth") if isinstance(entry, dict) else None
            if isinstance(auth, str) and _is_basic(auth):
                return auth
    return None


def _login_files() -> list[Path]:
    files = []
    if explicit := os.environ.get("REGISTRY_AUTH_FILE"):
        files.append(Path(explicit))
    files.append(Path(os.environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser()) / "config.json")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        files.append(Path(runtime) / "containers" / "auth.json")
    return files


def _is_basic(auth: str) -> bool:
    try:
        return b":" in base64.b64decode(auth, validate=True)
    except (binascii.Error, ValueError):
        return False


def _read(response: http.client.HTTPResponse, limit: int) -> bytes:
    data = response.read(limit + 1)
    if len(data) > limit:
        raise RegistryError(f"{response.url}: an answer of more than {limit} bytes")
    return data
