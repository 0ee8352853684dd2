"""Users and passwords for registries, from where ``docker login`` and ``podman login`` keep them."""

import base64
import binascii
import json
import os
from pathlib import Path

from nitro_eif.container.references import HUB


def credentials(host: str) -> str | None:
    """A registry's credentials, base64 of ``user:password``; `None` if nobody has logged in there."""
    keys = {host}
    if host == HUB:
        keys |= {"https://index.docker.io/v1/", "docker.io", "index.docker.io"}
    for path in _login_files():
        try:
            auths = json.loads(path.read_bytes()).get("auths", {})
        except (OSError, ValueError, AttributeError, RecursionError):
            # A file that is not there or broken is passed over, as Docker does.
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
