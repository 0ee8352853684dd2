"""``vmm run --timeline``: where the timeline goes, which is looked at before the boot."""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nitro_vmm.errors import HostError, UsageError

if TYPE_CHECKING:
    from nitro_vmm.enclave import Result
    from nitro_vmm.enclave.timeline import Timeline

SUFFIXES: Final = (".html", ".json")


class TimelineFile:
    """A file for a timeline.

    Args:
        path: Where to; its suffix says whether it is a web page or JSON.
        image: Whose boot it is.

    Raises:
        UsageError: The suffix is another one, or there is something else than a file.
        HostError: It cannot be written there.
    """

    def __init__(self, path: str, image: Path) -> None:
        place = Path(path)
        if place.suffix not in SUFFIXES:
            raise UsageError(
                f"--timeline {path}: the name must end in .html or .json", hint="--timeline boot.html"
            )
        if place.exists() and not place.is_file():
            raise UsageError(f"--timeline {path}: this is no file", hint="give another name")
        self._image = image.name
        # Absolute, because the end may be hours away; and tried, because nobody waits for hours in vain.
        self._path = place.absolute()
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise HostError(
                f"--timeline {path}: nothing can be written to {self._path.parent}",
                hint="make the directory, or give another one",
            )

    def write(self, timeline: "Timeline", result: "Result") -> None:
        """Write it whole, or leave what was there.

        Raises:
            HostError: It cannot be written.
        """
        from nitro_vmm.enclave.timeline_page import page  # noqa: PLC0415 - only here

        facts = {
            "image": self._image,
            "end": result.reason,
            "mode": "debug" if result.debug_mode else "production",
            "memory": f"{result.memory_mib} MiB",
            "enclave": result.module_id,
        }
        data = {"image": self._image, "end": result.reason, "moments": timeline.as_json()}
        if self._path.suffix == ".html":
            text = page(timeline.moments, facts, data)
        else:
            text = json.dumps(data, indent=2) + "\n"
        try:
            with tempfile.NamedTemporaryFile(
                "w",
                dir=self._path.parent,
                prefix=f".{self._path.name}.",
                delete=False,
                encoding="utf-8",
                errors="replace",  # the image's name need not be UTF-8
            ) as file:
                file.write(text)
            try:
                Path(file.name).chmod(0o666 & ~_umask())
                Path(file.name).replace(self._path)
            except OSError:
                Path(file.name).unlink()
                raise
        except OSError as error:
            raise HostError(f"--timeline {self._path}: {error.strerror}") from error


def _umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask
