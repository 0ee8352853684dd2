"""Pull images from a registry over HTTPS, without a daemon (OCI distribution-spec 1.1, "Pull").

Plain HTTP is for registries on this machine, or where the caller asks for it. Credentials come from where
``docker login`` and ``podman login`` keep them.
"""

import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

from nitro_eif.container.credentials import credentials
from nitro_eif.container.documents import check_digest
from nitro_eif.container.references import Reference
from nitro_eif.container.stores import Root
from nitro_eif.errors import EifFormatError, RegistryError
from nitro_eif.files import CHUNK_BYTES, Progress, map_temporary, scratch_file
from nitro_eif.json_text import JSON_BYTES_MAX, parse_json

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
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Registry:
    """One repository of a registry, as a store of an image's parts.

    Args:
        reference: The image.
        stack: Closes what was downloaded.
        plain_http: Talk HTTP without TLS, also to other machines.
        progress: Called with bytes downloaded and the size of the present blob.
        sleep: Waits so many seconds before another try.
    """

    def __init__(
        self,
        reference: Reference,
        stack: ExitStack,
        *,
        plain_http: bool = False,
        progress: Progress | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reference = reference
        self._sleep = sleep
        self._stack = stack
        self._plain = plain_http or reference.is_local
        self._progress = progress
        self._authorization: str | None = None
        self._opener = urllib.request.build_opener(_Redirects(plain=self._plain))

    def root(self) -> Root:
        """The index or manifest that the reference names, checked where it is a digest."""
        version = self._reference.version
        with self._get(f"manifests/{version}", accept=_ACCEPT) as response:
            data = _read(response, JSON_BYTES_MAX)
        if ":" in version:
            try:
                check_digest(data, version)
            except EifFormatError as error:
                raise error.at(Path(self._name)) from None
        return Root(data, self._name)

    def blob(self, digest: str, size: int | None) -> memoryview:
        """Download a blob, or a manifest that an index names, into a temporary file."""
        limit = size if size is not None else JSON_BYTES_MAX
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
                self._sleep(FIRST_DELAY_S * 2**attempt)
        raise AssertionError  # the loop returns or raises

    @property
    def _name(self) -> str:
        return str(self._reference)

    def _download(self, digest: str, size: int, file: IO[bytes]) -> None:
        with self._find(digest) as response:
            done = 0
            while data := response.read(min(CHUNK_BYTES, size - done + 1)):
                done += len(data)
                if done > size:
                    raise RegistryError(
                        f"{self._name}: the registry sends more than the {size} bytes of {digest}"
                    )
                file.write(data)
                if self._progress is not None:
                    self._progress(done, size)
        if done < size and size != JSON_BYTES_MAX:
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
                    what, hint = _unreachable(reason)
                    raise RegistryError(f"{url}: {what}", hint=hint) from error
            self._sleep(FIRST_DELAY_S * 2**attempt)
        raise RegistryError(f"{url}: the registry asks for credentials again and again")

    def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        response: http.client.HTTPResponse = self._opener.open(request, timeout=TIMEOUT_S)
        return response

    def _refused(self, error: urllib.error.HTTPError, url: str) -> RegistryError:
        match error.code:
            case 401 | 403:
                return RegistryError(
                    f"{url}: access denied ({error.code})", hint="log in with docker login or podman login"
                )
            case 404:
                return _NotFoundError(f"{url}: there is no such image (404)")
            case 429:
                return RegistryError(
                    f"{url}: too many requests (429)", hint="log in with docker login, or wait"
                )
        return RegistryError(f"{url}: the registry answers {error.code} {error.reason}")

    def _authorize(self, challenge: str) -> str:
        """Answer a 401 (distribution-spec, and RFC 7235 §2.1)."""
        scheme, _, rest = challenge.partition(" ")
        parameters = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        basic = credentials(self._reference.host)
        if scheme.lower() == "basic":
            if basic is None:
                raise RegistryError(
                    f"{self._name}: the registry wants a user and password",
                    hint="log in with docker login or podman login",
                )
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
                answer: Any = parse_json(_read(response, JSON_BYTES_MAX))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error, url) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise RegistryError(f"{url}: no token: {error}") from error
        except ValueError:
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


def _unreachable(reason: object) -> tuple[str, str]:
    """What went wrong on the way to a registry, and what to do about it."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({reason.verify_message})", "see SSL_CERT_FILE"
    if isinstance(reason, ssl.SSLError):
        return f"no TLS there ({reason.reason})", "if you trust a plain HTTP registry, use --plain-http"
    return f"cannot be reached: {reason}", ""


def _read(response: http.client.HTTPResponse, limit: int) -> bytes:
    data = response.read(limit + 1)
    if len(data) > limit:
        raise RegistryError(f"{response.url}: an answer of more than {limit} bytes")
    return data
