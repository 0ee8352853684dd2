"""``nitro-cli run-enclave``, ``describe-enclaves``, ``terminate-enclave`` and ``console``."""

import argparse
import json
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from nitro_vmm.cli.console import join, writer
from nitro_vmm.cli.detach import start
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.cli.nitro.errors import NitroCliError
from nitro_vmm.cli.nitro.images import eif, show
from nitro_vmm.cli.stop import STOP_TIMEOUT_S, end, wait_for
from nitro_vmm.cli.streams import tell
from nitro_vmm.defaults import MEMORY_MIB_MIN, MEMORY_PER_IMAGE_BYTE
from nitro_vmm.errors import HostError, UsageError
from nitro_vmm.run.control import ask
from nitro_vmm.run.registry import Entry, alive, directory_of, entries, find, process_of

MIB: Final = 1 << 20
MEMORY: Final = re.compile(r"(\d{1,9})([MGT]?)")
FACTORS: Final = {"": 1, "M": 1, "G": 1 << 10, "T": 1 << 20}
CONFIG_KEYS: Final = (
    *("enclave_name", "cpu_ids", "cpu_count", "eif_path", "enclave_cid"),
    *("memory_mib", "debug_mode", "attach_console"),
)
CONFIG_BYTES_MAX: Final = 1 << 20
BOOT_TIMEOUT_S: Final = 90
"""For every started 6 GiB of image, and once more for every started 100 GiB of memory, as nitro-cli waits."""


def run(arguments: argparse.Namespace) -> None:
    """Launch an enclave, and wait until it has booted."""
    wanted = _wanted(arguments)
    image = Path(wanted["eif_path"])
    memory_mib = _memory(wanted["memory_mib"])
    try:
        with image.open("rb"):
            image_bytes = image.stat().st_size
    except OSError:
        raise NitroCliError("E19", f"File: '{image}', failing operation: 'Open'.") from None
    needed_mib = max(MEMORY_MIB_MIN, -(-MEMORY_PER_IMAGE_BYTE * image_bytes // MIB))
    if memory_mib < needed_mib:
        raise NitroCliError(
            "E26",
            f"User provided `memory` is {memory_mib} MB, but based on the EIF file size, the minimum memory "
            f"should be {needed_mib} MB",
        )
    cpu_ids = _cpu_ids(wanted)
    cid = _cid(wanted.get("enclave_cid"))
    debug = bool(wanted.get("debug_mode") or wanted.get("attach_console"))
    timeout_s = BOOT_TIMEOUT_S * (1 + image_bytes // (6 << 30) + 1 + memory_mib // (100 << 10))
    tell("Start allocating memory...")
    argv = ["run", str(image), "--memory-mib", str(memory_mib), "--cid", str(cid)]
    argv += ["--processors", str(len(cpu_ids)), "--boot-timeout-s", str(timeout_s)]
    argv += ["--debug-mode", "--console"] if debug else ["--no-console"]
    if wanted.get("enclave_name"):
        argv += ["--name", _free_name(str(wanted["enclave_name"]))]
    code, started, said = start(argv)
    if started is None:
        kinds = {ExitCode.IMAGE: "E35", ExitCode.USAGE: "E03", ExitCode.HOST: "E29"}
        raise NitroCliError(kinds.get(ExitCode(code), "E36"), said.rpartition("vmm: error: ")[2])
    entry = find(started["Name"])
    with suppress(OSError):
        (directory_of(entry) / "cpu_ids.json").write_text(json.dumps(cpu_ids))
    _wait_for_boot(entry)
    tell(f"Started enclave with enclave-cid: {entry.cid}, memory: {memory_mib} MiB, cpu-ids: {cpu_ids}")
    show(_identity(entry))
    sys.stdout.flush()
    if wanted.get("attach_console"):
        _attach(entry, None)


def describe(arguments: argparse.Namespace) -> None:
    """List what runs."""
    found = []
    for entry in entries():
        if alive(entry):
            described = _identity(entry) | {
                "State": "RUNNING",
                "Flags": "DEBUG_MODE" if entry.debug_mode else "NONE",
                "Measurements": entry.measurements,
            }
            if arguments.metadata:
                about = eif("describe", "--json", entry.image, code="E35", refused=True)
                described |= {
                    key: about[key] for key in ("ImageName", "ImageVersion", "Metadata") if key in about
                }
            found.append(described)
    show(found)


def terminate(arguments: argparse.Namespace) -> None:
    """End one, or all."""
    if arguments.all:
        show([_terminate(entry) for entry in entries() if alive(entry)])
    else:
        show(_terminate(_chosen(arguments)))


def console(arguments: argparse.Namespace) -> None:
    """Attach to a console."""
    timeout_s = None if arguments.disconnect_timeout is None else float(arguments.disconnect_timeout)
    _attach(_chosen(arguments), timeout_s)


def _attach(entry: Entry, timeout_s: float | None) -> None:
    tell(f"Connecting to the console for enclave {entry.cid}...")
    if not entry.debug_mode:
        raise NitroCliError("E44", f"{entry.name} does not run in debug mode.")
    try:
        with ask(directory_of(entry), "console") as control:
            tell("Successfully connected to the console.")
            join(control, None, writer(raw=False), timeout_s=timeout_s)
    except HostError as error:
        raise NitroCliError("E44", str(error)) from error


def _terminate(entry: Entry) -> dict[str, object]:
    end(entry, STOP_TIMEOUT_S)
    tell(f"Successfully terminated enclave {entry.id}.")
    return {"EnclaveName": entry.name, "EnclaveID": entry.id, "Terminated": True}


def _chosen(arguments: argparse.Namespace) -> Entry:
    by_id = arguments.enclave_id is not None
    wanted = arguments.enclave_id if by_id else arguments.enclave_name
    for entry in entries():
        if alive(entry) and wanted == (entry.id if by_id else entry.name):
            return entry
    raise NitroCliError("E40" if by_id else "E58", f"No enclave {wanted} is running.")


def _identity(entry: Entry) -> dict[str, Any]:
    cpu_ids = _ids(entry.processors)
    with suppress(OSError, ValueError):
        cpu_ids = json.loads((directory_of(entry) / "cpu_ids.json").read_text())
    return {
        "EnclaveName": entry.name,
        "EnclaveID": entry.id,
        "ProcessID": entry.pid,
        "EnclaveCID": entry.cid,
        "NumberOfCPUs": len(cpu_ids),
        "CPUIDs": cpu_ids,
        "MemoryMiB": entry.memory_mib,
    }


def _wait_for_boot(entry: Entry) -> None:
    try:
        with ask(directory_of(entry), "booted") as control, control.makefile("rb") as answer:
            if answer.readline(100).strip() == b"true":
                return
    except (HostError, OSError):
        pass  # it has ended already
    with process_of(entry) as pidfd:
        if pidfd is not None:
            wait_for(pidfd, STOP_TIMEOUT_S)  # its process still writes down why
    why = "the enclave was killed"
    with suppress(UsageError):
        report = find(entry.name).report
        if report is not None:
            cause = report.get("Cause")
            why = report["Reason"] + (f": {cause['message']}; {cause['hint']}" if cause else "")
    raise NitroCliError("E36", f"{why}.")


def _wanted(arguments: argparse.Namespace) -> dict[str, Any]:
    flags = {
        "enclave_name": arguments.enclave_name,
        "cpu_ids": arguments.cpu_ids,
        "cpu_count": arguments.cpu_count,
        "eif_path": arguments.eif_path,
        "enclave_cid": arguments.enclave_cid,
        "memory_mib": arguments.memory,
        "debug_mode": arguments.debug_mode or None,
        "attach_console": arguments.attach_console or None,
    }
    wanted = {name: value for name, value in flags.items() if value is not None}
    if arguments.config is not None:
        if wanted:
            raise NitroCliError("E02", f"User provided both `config` and `{next(iter(wanted))}`.")
        wanted = _read_config(arguments.config)
    for name, option in (("eif_path", "eif-path"), ("memory_mib", "memory")):
        if wanted.get(name) is None:
            raise NitroCliError("E01", f"User did not provide the `{option}` argument.")
    if wanted.get("cpu_count") is not None and wanted.get("cpu_ids"):
        raise NitroCliError("E02", "User provided both `cpu-count` and `cpu-ids`.")
    if wanted.get("cpu_count") is None and not wanted.get("cpu_ids"):
        raise NitroCliError("E01", "User did not provide the `cpu-count` or `cpu-ids` argument.")
    return wanted


def _read_config(path: str) -> dict[str, Any]:
    try:
        if not Path(path).is_file():
            raise OSError  # noqa: TRY301 - a pipe is waited for
        with open(path, "rb") as file:  # noqa: PTH123
            config = json.loads(file.read(CONFIG_BYTES_MAX))
    except OSError:
        raise NitroCliError("E19", f"File: '{path}', failing operation: 'Open'.") from None
    except (ValueError, RecursionError) as error:
        raise NitroCliError("E17", f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise NitroCliError("E17", f"{path} is no JSON object")
    for key in config:
        if key not in CONFIG_KEYS:
            raise NitroCliError("E17", f"{path}: unknown field `{key}`; there are {', '.join(CONFIG_KEYS)}")
    return config


def _number(name: str, value: object) -> int:
    if not re.fullmatch(r"-?\d{1,10}", str(value)):
        raise NitroCliError("E03", f"The parameter `{name}` is not a valid integer (`{value}`)")
    return int(str(value))


def _memory(value: object) -> int:
    match = MEMORY.fullmatch(str(value))
    if match is None or isinstance(value, bool):
        raise NitroCliError("E03", f"The parameter `memory` is not a valid integer (`{value}`)")
    memory_mib = int(match[1]) * FACTORS[match[2]]
    if memory_mib == 0:
        raise NitroCliError("E26", "User provided `memory` is 0 MB, and memory should be greater than 0 MB.")
    return memory_mib


def _cid(value: object) -> int:
    if value is None:
        return 0
    cid = _number("enclave-cid", value)
    if cid in {1, 2, 3, 0xFFFF_FFFF} or not 0 <= cid <= 0xFFFF_FFFF:
        raise NitroCliError("E03", f"CID {cid} is reserved or out of range; 0 means a free one.")
    if any(entry.cid == cid for entry in entries() if alive(entry)):
        raise NitroCliError("E03", f"CID {cid} is taken by an enclave that runs.")
    return cid


def _cpu_ids(wanted: dict[str, Any]) -> list[int]:
    if not wanted.get("cpu_ids"):
        count = _number("cpu-count", wanted["cpu_count"])
        if not 1 <= count <= 64:
            raise NitroCliError("E22", f"User provided `cpu-count` is {count}, and here it is from 1 to 64.")
        return _ids(count)
    given = wanted["cpu_ids"]
    ids = [_number("cpu-ids", value) for value in (given if isinstance(given, list) else [given])]
    for number in ids:
        if ids.count(number) > 1:
            raise NitroCliError("E20", f"User provided `cpu-ids` contains CPU {number} multiple times.")
        if not 0 < number < 1024:
            raise NitroCliError("E21", f"User provided `cpu-ids` contains CPU {number}, not in the pool.")
    if len(ids) > 64:
        raise NitroCliError("E22", f"User provided {len(ids)} `cpu-ids`, and here they are 64 at most.")
    return ids


def _ids(count: int) -> list[int]:
    """Processors as EC2's pools have them: one thread of each core, the parent keeping core 0."""
    return [2 * number + 1 for number in range(count)]


def _free_name(name: str) -> str:
    taken = {entry.name for entry in entries() if alive(entry)}
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
