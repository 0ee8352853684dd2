"""The metadata section: compact JSON about how the image was built (README, "EifSectionMetadata").

AWS's reader needs all five members, in its own writer's order here; ``DockerInfo`` and ``CustomMetadata`` may
be null, whatever the README's schema says: `eif_build` writes null for both. Nothing of this is measured.
"""

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from nitro_eif.errors import EifFormatError, HostError, UsageError
from nitro_eif.image.format import CUSTOM_METADATA_BYTES_MAX
from nitro_eif.json_text import parse_json

BUILD_TOOL: Final = "nitro-eif"
_TIME_HINT: Final = "write it like 2026-01-31T12:00:00+00:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildMetadata:
    """Who built the image, when and from what."""

    build_time: str
    """RFC 3339."""
    build_tool: str = BUILD_TOOL
    build_tool_version: str = ""
    operating_system: str = "OS"
    kernel_version: str = "kernel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The metadata section's contents."""

    image_name: str
    image_version: str = "1.0"
    build: BuildMetadata
    docker_info: Any = None
    """What ``docker image inspect`` says of the image it was made from."""
    custom: Any = field(default=None)
    """An object of the user's own."""

    def pack(self) -> bytes:
        """The section's bytes, as AWS's writer orders them.

        Raises:
            UsageError: A text in it is not Unicode.
        """
        text = json.dumps(
            {
                "ImageName": self.image_name,
                "ImageVersion": self.image_version,
                "BuildMetadata": {
                    "BuildTime": self.build.build_time,
                    "BuildTool": self.build.build_tool,
                    "BuildToolVersion": self.build.build_tool_version,
                    "OperatingSystem": self.build.operating_system,
                    "KernelVersion": self.build.kernel_version,
                },
                "DockerInfo": _sorted(self.docker_info),
                "CustomMetadata": _sorted(self.custom),
            },
            separators=(",", ":"),
            ensure_ascii=False,
        )
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the metadata has text that is not Unicode: {text[error.start :][:40]!r}"
            ) from None

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Self:
        """Read a metadata section.

        Raises:
            EifFormatError: It is not JSON, or lacks what AWS's reader needs; the offset is in the section.
        """
        value = load_json(data)
        members: dict[str, str] = {}
        build = value.get("BuildMetadata")
        missing = [key for key in _MEMBERS if key not in value]
        if missing or not isinstance(build, dict):
            what = ", ".join(missing) or "an object BuildMetadata"
            raise EifFormatError(f"the metadata lacks {what}", code="metadata-schema")
        for key, owner in (*((k, value) for k in _MEMBERS[:2]), *((k, build) for k in _BUILD_MEMBERS)):
            text = owner.get(key)
            if not isinstance(text, str):
                raise EifFormatError(f"the metadata's {key} is not a string", code="metadata-schema")
            members[key] = text
        return cls(
            image_name=members["ImageName"],
            image_version=members["ImageVersion"],
            build=BuildMetadata(
                build_time=members["BuildTime"],
                build_tool=members["BuildTool"],
                build_tool_version=members["BuildToolVersion"],
                operating_system=members["OperatingSystem"],
                kernel_version=members["KernelVersion"],
            ),
            docker_info=value["DockerInfo"],
            custom=value["CustomMetadata"],
        )


def _sorted(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Sort the members of objects, as AWS's writer does with what it does not know."""
    return json.loads(json.dumps(value, sort_keys=True))


_MEMBERS: Final = ("ImageName", "ImageVersion", "BuildMetadata", "DockerInfo", "CustomMetadata")
_BUILD_MEMBERS: Final = ("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion")


def load_json(data: bytes | memoryview) -> dict[str, Any]:
    """Parse a metadata section without asking for members.

    Raises:
        EifFormatError: It is not a JSON object.
    """
    try:
        value = parse_json(data)
    except json.JSONDecodeError as error:
        raise EifFormatError(
            f"the metadata is not JSON: {error.msg}", offset=error.pos, code="metadata-json"
        ) from None
    except ValueError as error:
        raise EifFormatError(f"the metadata is not JSON: {error}", code="metadata-json") from None
    if not isinstance(value, dict):
        raise EifFormatError("the metadata is not a JSON object", code="metadata-json")
    return value


def build_time(given: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """Choose the build time: as given, else SOURCE_DATE_EPOCH, else 1970; UTC, so the same in all time zones.

    The present time would make each build another file, so it is taken only where ``now`` is asked for.

    Raises:
        UsageError: The given time or SOURCE_DATE_EPOCH is not a time.
    """
    from datetime import UTC, datetime  # noqa: PLC0415 - only a build has a time

    if given == "now":
        return datetime.fromtimestamp(int(time.time()), UTC).isoformat()
    if given is not None:
        try:
            moment = datetime.fromisoformat(given)
        except ValueError:
            raise UsageError(f"{given!r} is not a time", hint=_TIME_HINT) from None
        if moment.tzinfo is None:
            raise UsageError(f"{given!r} has no time zone", hint=_TIME_HINT)
        return given
    epoch = environment.get("SOURCE_DATE_EPOCH", "0")
    try:
        return datetime.fromtimestamp(int(epoch), UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"SOURCE_DATE_EPOCH is {epoch!r}", hint="it is in seconds since 1970") from None


def custom_metadata(path: Path) -> Any:  # noqa: ANN401 - JSON
    """Read a custom metadata file.

    Raises:
        HostError: It cannot be read.
        UsageError: It is too long, or not a JSON object.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HostError(f"{path}: cannot read it: {error.strerror}") from error
    if len(data) > CUSTOM_METADATA_BYTES_MAX:
        raise UsageError(
            f"{path}: {len(data)} bytes; custom metadata has at most {CUSTOM_METADATA_BYTES_MAX}"
        )
    try:
        return load_json(data)
    except EifFormatError as error:
        raise UsageError(f"{path}: {error.reason.replace('the metadata', 'custom metadata')}") from None


def kernel_config(text: str) -> tuple[str, str]:
    """Read operating system and kernel version from a kernel's ``.config``, as `eif_build` does.

    Its third line is like ``# Linux/x86_64 6.6.79 Kernel Configuration``.

    Raises:
        UsageError: The third line is not like that.
    """
    lines = text.splitlines()
    words = re.split("[ /-]", lines[2]) if len(lines) > 2 else []
    if len(words) < 4:
        raise UsageError(
            "the kernel configuration's third line is not like '# Linux/x86 6.6.79 Kernel Configuration'"
        )
    return words[1], words[3]


def tool_version() -> str:
    """This package's version."""
    from importlib.metadata import version  # noqa: PLC0415 - slow to import

    return version("nitro-eif")
