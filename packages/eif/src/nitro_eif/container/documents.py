"""Manifests, indexes and configs of container images: JSON that is named by its digest.

(OCI image-spec 1.1: descriptor.md, image-index.md, manifest.md, config.md.)
"""

import hashlib
import re
from pathlib import Path
from typing import Any, Final

from nitro_eif.errors import EifFormatError
from nitro_eif.files import chunks
from nitro_eif.json_text import parse_json

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")

Json = dict[str, Any]


def check_digest(data: bytes | memoryview, digest: str) -> None:
    """Check bytes against a digest as OCI writes them, ``sha256:HEX``.

    Raises:
        EifFormatError: They have another.
    """
    algorithm, _, _ = digest.partition(":")
    computed = hashlib.new(algorithm)
    for piece in chunks(memoryview(data)):
        computed.update(piece)
    if f"{algorithm}:{computed.hexdigest()}" != digest:
        raise EifFormatError(f"the data are not {digest} but {algorithm}:{computed.hexdigest()}")


def load_document(data: bytes | memoryview, place: Path) -> Json:
    """Parse a manifest, index or config.

    Args:
        data: Its text.
        place: Which image it is of, for messages.

    Raises:
        EifFormatError: It is not a JSON object, or absurdly long.
    """
    value = load_json(data, place)
    if not isinstance(value, dict):
        raise EifFormatError("a manifest or config is not a JSON object", path=place)
    return value


def load_json(data: bytes | memoryview, place: Path) -> Any:  # noqa: ANN401 - JSON
    """Parse any JSON of an image, within the limit for documents.

    Raises:
        EifFormatError: It is not JSON, or absurdly long.
    """
    try:
        return parse_json(data)
    except ValueError as error:
        raise EifFormatError(f"a manifest or config is not JSON: {error}", path=place) from None


def objects(value: object, what: str, place: Path, *, may_be_empty: bool = False) -> list[Json]:
    """A list of objects that a document has somewhere.

    Raises:
        EifFormatError: The value is something else.
    """
    if isinstance(value, list) and all(isinstance(item, dict) for item in value) and (value or may_be_empty):
        return value
    raise EifFormatError(f"{what} is not a list of objects", path=place)
