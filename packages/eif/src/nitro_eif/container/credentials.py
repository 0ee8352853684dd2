"""Users and passwords for registries, from where ``docker login`` and ``podman login`` keep them."""

import base64
import binascii
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final

from nitro_eif.container.references import HUB

HELPER_TIMEOUT_S: Final = 60.0
"""How long a credential helper may take; some ask their user."""


def credentials(host: str) -> str | None:
    """A registry's credentials, base64 of ``user:password``; `None` if nobody has logged in there."""
    keys = {host}
    if host == HUB:
        keys |= {"https://index.docker.io/v1/", "docker.io", "index.docker.io"}
    for path in _login_files():
        try:
            logins = json.loads(path.read_bytes())
            auths = logins.get("auths", {})
        except (OSError, ValueError, AttributeError, RecursionError):
            # A file that is not there or broken is passed over, as Docker does.
            continue
        for key in sorted(keys):
            helper = _helper(logins, key)
            found = _ask(helper, key) if helper else None
            if found is not None:
                return found
            entry = auths.get(key) if isinstance(auths, dict) else None
            auth = entry.get("auth") if isinstance(entry, dict) else None
            if isinstance(auth, str) and _is_basic(auth):
                return auth
    return None


def _helper(logins: dict[str, Any], key: str) -> str | None:
    """The program that keeps a registry's password, if one does (``credHelpers``, ``credsStore``)."""
    helpers = logins.get("credHelpers")
    name = helpers.get(key) if isinstance(helpers, dict) else None
    name = name or logins.get("credsStore")
    # The name becomes a part of a program's: it must not lead to another directory.
    return name if isinstance(name, str) and re.fullmatch(r"[\w.-]+", name, re.ASCII) else None


def _ask(helper: str, key: str) -> str | None:
    """Ask a credential helper (docker-credential-helpers, "Development")."""
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=key.encode(),
            capture_output=True,
            timeout=HELPER_TIMEOUT_S,
            check=False,
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, RecursionError, subprocess.TimeoutExpired):
        return None
    user, secret = (
        (answer.get(name) for name in ("Username", "Secret")) if isinstance(answer, dict) else (0, 0)
    )
    # A user called <token> has a token of another kind, which only Docker itself can use.
    if not isinstance(user, str) or not isinstance(secret, str) or user == "<token>":
        return None
    return base64.b64encode(f"{user}:{secret}".encode()).decode()


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
