"""A command line of QEMU's ``nitro-enclave`` machine, read as the settings of `EnclaveConfig`.

What QEMU measures, boots and asks of the machine becomes a setting. What says how QEMU itself goes about it
(``-cpu``, ``-display``, ``-object memory-backend-memfd``) is left out, and told. What would make another
machine (``-initrd``, ``-device``, an option that is not known here) is refused, because to leave it out in
silence would boot something else.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Final

from nitro_vmm.errors import UsageError

MACHINE: Final = "nitro-enclave"
IMPLIED: Final = {
    **dict.fromkeys(("M", "machine"), "type"),
    "m": "size",
    "smp": "cpus",
    "name": "guest",
    "accel": "accel",
    "chardev": "backend",
}
"""What the first value is called that has no name (QEMU's ``implied_opt_name``)."""
LEFT_OUT: Final = {
    "cpu",
    "display",
    "monitor",
    "mon",
    "object",
    "pidfile",
    "qmp",
    "serial",
    "vga",
    "vnc",
    "L",
    "D",
}
"""Options with a value that say how QEMU goes about it."""
LEFT_OUT_ALONE: Final = {
    "daemonize",
    "no-reboot",
    "no-user-config",
    "nodefaults",
    "nographic",
    "S",
    "no-shutdown",
}
"""The same without a value."""
MACHINE_LEFT_OUT: Final = {"memory-backend", "mem-merge", "dump-guest-core", "usb", "graphics"}
ACCELERATORS: Final = {"kvm": "kvm", "tcg": "unicorn"}
MIB: Final = 1 << 20
UNITS: Final = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([bBkKmMgGtT]?)")
VALUE: Final = re.compile(r"((?:[^,]|,,)+)(?:,|$)")
"""One of several values with commas between; two commas are one in a value."""
ENCLAVE_ID: Final = re.compile(r"(?:i-[0-9a-f]+-)?enc([0-9a-f]{16})")
"""A module's name as on AWS, whose last part is ours to choose."""


@dataclass(slots=True)
class QemuOptions:
    """What a command line says."""

    values: dict[str, object] = field(default_factory=dict)
    """By the names of `EnclaveConfig`."""
    spellings: dict[str, str] = field(default_factory=dict)
    """How each was written, for messages."""
    left_out: list[str] = field(default_factory=list)
    """Options that change nothing here."""

    def set(self, name: str, value: object, spelling: str) -> None:
        """Note a setting."""
        self.values[name], self.spellings[name] = value, spelling


def read_qemu(text: str) -> QemuOptions:
    """Read a command line, with or without the program's name.

    Raises:
        UsageError: It is not of a ``nitro-enclave`` machine, or has what cannot be had here.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"QEMU's command line: {error}", hint="quote it as a shell would want it") from error
    if words and not words[0].startswith("-"):
        del words[0]
    return _Reader().read(iter(words))


class _Reader:
    def __init__(self) -> None:
        self._found = QemuOptions()
        self._chardevs: dict[str, dict[str, str]] = {}
        self._vsock: str | None = None
        self._accelerators: list[str] = []
        self._is_enclave = False

    def read(self, words: Iterator[str]) -> QemuOptions:
        for word in words:
            if not word.startswith("-") or word == "-":
                raise UsageError(f"QEMU's command line: {word!r} is a disk, and enclaves have none")
            option = word.lstrip("-")
            if option == "enable-kvm":
                self._accelerators.append("kvm")
            elif option in LEFT_OUT_ALONE:
                self._found.left_out.append(word)
            else:
                value = next(words, None)
                if value is None:
                    raise UsageError(f"QEMU's command line: {word} needs a value")
                self._take(option, word, value)
        return self._finish()

    def _take(self, option: str, word: str, value: str) -> None:
        match option:
            case "M" | "machine":
                self._machine(_pairs(option, word, value))
            case "kernel":
                self._found.set("eif_path", value, word)
            case "append":
                self._found.set("cmdline_append", value, word)
            case "m":
                size = _pairs(option, word, value).get("size", value)
                self._found.set("memory_mib", _mib(word, size), word)
            case "smp":
                self._found.set("processors", _pairs(option, word, value).get("cpus", value), word)
            case "name":
                self._found.set("name", _pairs(option, word, value).get("guest", value), word)
            case "accel":
                self._accelerators.append(_pairs(option, word, value).get("accel", value))
            case "chardev":
                pairs = _pairs(option, word, value)
                self._chardevs[pairs.get("id", "")] = pairs
            case _ if option in LEFT_OUT:
                self._found.left_out.append(f"{word} {value}")
            case "initrd":
                raise UsageError(
                    "QEMU's -initrd adds to what is measured",
                    hint="build it into the image: eif build --ramdisk",
                )
            case _:
                raise UsageError(f"QEMU's option {word} is not known here", hint="leave it out")

    def _machine(self, pairs: dict[str, str]) -> None:
        for name, value in pairs.items():
            spelling = f"-M {name}="
            match name:
                case "type":
                    if value != MACHINE:
                        raise UsageError(
                            f"QEMU's machine {value!r} is not {MACHINE}", hint=f"-M {MACHINE},..."
                        )
                    self._is_enclave = True
                case "vsock":
                    self._vsock = value
                case "parent-role":
                    self._found.set("role_arn", value, spelling)
                case "parent-id":
                    self._found.set("instance_id", value, spelling)
                case "id":
                    self._identify(value, spelling)
                case "accel":
                    self._accelerators += value.split(":")
                case _ if name in MACHINE_LEFT_OUT:
                    self._found.left_out.append(f"{spelling}{value}")
                case _:
                    raise UsageError(f"QEMU's -M {name}= is not known here", hint="leave it out")

    def _identify(self, value: str, spelling: str) -> None:
        # QEMU puts any text into documents as the module's name. A module here has a name of AWS's form, of
        # which the last part can be chosen; other text is at least the name by which `vmm ps` knows it.
        if match := ENCLAVE_ID.fullmatch(value):
            self._found.set("enclave_id", match[1], spelling)
        elif "name" not in self._found.values:
            self._found.set("name", value, spelling)

    def _finish(self) -> QemuOptions:
        if not self._is_enclave:
            raise UsageError(
                f"QEMU's command line has no machine {MACHINE}", hint=f"-M {MACHINE},vsock=c,id=hello ..."
            )
        if self._vsock is not None:
            self._found.set("vhost_user_path", self._daemon(self._vsock), "-M vsock=")
        self._found.set("console", True, f"-M {MACHINE}")  # QEMU shows it in production mode, too
        if self._accelerators:
            self._found.set("accelerator", self._accelerator(), "-accel")
        return self._found

    def _daemon(self, name: str) -> str:
        chardev = self._chardevs.get(name)
        if chardev is None:
            raise UsageError(
                f"QEMU's -M vsock={name} names no -chardev", hint=f"-chardev socket,id={name},path=PATH"
            )
        path = chardev.get("path")
        if chardev.get("backend") != "socket" or path is None:
            raise UsageError(
                f"QEMU's -chardev {name} is not a unix socket", hint=f"-chardev socket,id={name},path=PATH"
            )
        return path

    def _accelerator(self) -> str:
        unknown = [name for name in self._accelerators if name not in ACCELERATORS]
        if unknown:
            raise UsageError(f"QEMU's accelerator {unknown[0]!r} is not known here", hint="kvm or tcg")
        names = list(dict.fromkeys(self._accelerators))
        return ACCELERATORS[names[0]] if len(names) == 1 else "auto"  # kvm:tcg is what "auto" does


def _pairs(option: str, word: str, text: str) -> dict[str, str]:
    """``first,name=value,...`` as QEMU reads it; two commas are one in a value, and a bare name is on."""
    pairs: dict[str, str] = {}
    for index, part in enumerate(VALUE.findall(text)):
        name, separator, value = part.replace(",,", ",").partition("=")
        if not separator:
            name, value = (IMPLIED[option], name) if index == 0 else (name, "on")
        if not name:
            raise UsageError(f"QEMU's {word} {text!r} cannot be read", hint="name=value, with commas between")
        pairs[name] = value
    return pairs


def _mib(word: str, text: str) -> int:
    match = SIZE.fullmatch(text)
    try:
        size = Decimal(match[1]) * UNITS[match[2].upper() or "M"] if match else Decimal(0)
    except InvalidOperation:
        size = Decimal(0)
    if size == 0 or size % MIB:
        raise UsageError(f"QEMU's {word} {text} is not a number of MiB", hint=f"{word} 512M")
    return int(size // MIB)
