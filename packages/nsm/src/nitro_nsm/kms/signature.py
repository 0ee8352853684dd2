"""Whether a request was signed with the secret of its access key: Signature Version 4.

The signature is an HMAC over the request: method, path, query, the headers that `SignedHeaders` names, and
the hash of the body. Its key is made of the secret, the day, the region and the service (IAM guide, "Create a
signed AWS API request").
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from nitro_nsm.kms.errors import KmsError

SIGNED = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=[^/,]+/(?P<scope>(?P<day>\d{8})/(?P<region>[^/,]+)/(?P<service>[^/,]+)"
    r"/aws4_request),\s*SignedHeaders=(?P<headers>[a-z0-9;-]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
)
TIME = "%Y%m%dT%H%M%SZ"
SKEW = timedelta(minutes=5)
"""How far a client's clock may be off, as on AWS."""
NEEDED = frozenset({"host", "x-amz-date", "x-amz-target"})
"""Headers without which a signature would fit other requests, too."""


def check_signature(
    headers: Iterable[tuple[bytes, bytes]], body: bytes, *, secret: str, now: datetime
) -> None:
    """Check a POST to `/`.

    Args:
        headers: Names in lower case, and values.
        body: The whole body.
        secret: The secret key that belongs to the access key.
        now: The time.

    Raises:
        KmsError: The signature is missing, too old or wrong (InvalidSignatureException).
    """
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.decode("latin-1"), []).append(" ".join(value.decode("latin-1").split()))
    found = SIGNED.fullmatch(values.get("authorization", [""])[0])
    if found is None:
        raise KmsError("IncompleteSignatureException", "The Authorization header is not that of SigV4.")
    names = found["headers"].split(";")
    time = values.get("x-amz-date", [""])[0]
    missing = [*(NEEDED - set(names)), *(name for name in names if name not in values)]
    if missing:
        raise _refusal(f"the signature is without {', '.join(sorted(missing))}")
    try:
        signed_at = datetime.strptime(time, TIME).replace(tzinfo=UTC)
    except ValueError:
        raise _refusal("X-Amz-Date is not a time") from None
    if abs(now - signed_at) > SKEW or time[:8] != found["day"]:
        raise _refusal(f"Signature expired: it is of {time}")
    lines = [f"{name}:{','.join(values[name])}" for name in names]
    canonical = ["POST", "/", "", *lines, "", found["headers"], hashlib.sha256(body).hexdigest()]
    hashed = hashlib.sha256("\n".join(canonical).encode("latin-1")).hexdigest()
    key = f"AWS4{secret}".encode()
    for part in (found["day"], found["region"], found["service"], "aws4_request"):
        key = _hmac(key, part)
    signature = _hmac(key, "\n".join(("AWS4-HMAC-SHA256", time, found["scope"], hashed)))
    if not hmac.compare_digest(signature.hex(), found["signature"]):
        raise _refusal(
            "The request signature we calculated does not match the signature you provided. Check your AWS "
            "Secret Access Key and signing method."
        )


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode("latin-1"), "sha256")


def _refusal(why: str) -> KmsError:
    return KmsError("InvalidSignatureException", why)
