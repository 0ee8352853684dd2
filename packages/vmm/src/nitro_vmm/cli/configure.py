"""The options that choose an enclave, and the configuration that they make."""

import argparse
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nitro_vmm.defaults import (
    BOOT_TIMEOUT_S_DEFAULT,
    CID_DEFAULT,
    ENVIRONMENT_PREFIX,
    MEMORY_MIB_DEFAULT,
    MEMORY_MIB_MIN,
)

if TYPE_CHECKING:
    from nitro_vmm.config import EnclaveConfig
    from nitro_vmm.plain_config import PlainConfig

logger = logging.getLogger(__name__)

SPELLINGS: Final = {
    "eif_path": "EIF",
    "snapshot_path": "--from",
    "warm": "--warm",
    "name": "--name",
    "memory_mib": "--memory-mib",
    "processors": "--processors",
    "accelerator": "--accel",
    "cid": "--cid",
    "cmdline_append": "--cmdline-append",
    "quiet_kernel": "--quiet-kernel",
    "vsock_path": "--vsock-path",
    "seqpacket": "--seqpacket",
    "vhost_user_path": "--vsock",
    "vhost_user_stats_path": "--vsock-stats",
    "publish": "--publish",
    "proxy": "--proxy",
    "allow": "--allow",
    "kms": "--kms",
    "boot_timeout_s": "--boot-timeout-s",
    "debug_mode": "--debug-mode",
    "console": "--console",
    "gdb": "--gdb",
    "role_arn": "--role-arn",
    "instance_id": "--instance-id",
    "enclave_id": "--enclave-id",
    "region": "--region",
    "root_key": "--root-key",
    "root_cert": "--root-cert",
}
"""The fields of `EnclaveConfig` that options set, and how these are spelled in messages."""


ACCELERATOR_VARIABLE: Final = "NITRO_VMM_ACCELERATOR"
WARM: Final = ("off", "kernel", "image")
NUMBERS: Final = (("memory_mib", MEMORY_MIB_MIN, 1 << 20), ("cid", 4, 0xFFFF_FFFE))
"""The fields of `PlainConfig` that are numbers, and their limits."""


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the image, and a file of settings."""
    add = parser.add_argument
    add("eif", metavar="EIF", nargs="?", type=Path, help="the image")
    add("--eif-path", metavar="EIF", type=Path, help="the same, as nitro-cli spells it")
    add("--config", metavar="FILE", type=Path, help="settings (JSON, TOML, YAML), also nitro-cli's --config")


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which machine an image gets."""
    add = parser.add_argument
    add(
        *("--memory-mib", "--memory"),
        metavar="N",
        help=f"memory, MiB (default: {MEMORY_MIB_DEFAULT}, or four times the image's size if that is more)",
    )
    add(
        *("--processors", "--cpu-count"),
        metavar="N",
        help="processors (default: 2 with KVM; an emulated machine has one)",
    )
    add(
        "--accel",
        dest="accelerator",
        metavar="NAME",
        help="what runs the guest: kvm, unicorn (emulated), or auto (the default): KVM if it can run Linux",
    )
    add("--cmdline-append", metavar="TEXT", help="add to the kernel's command line; it is not measured")
    add(
        "--quiet-kernel",
        action="store_const",
        const=True,
        help="let the kernel print errors only: adds `quiet` to its command line, which is not measured",
    )
    add(
        "--seqpacket",
        action="store_const",
        const=True,
        help="offer SEQPACKET vsock connections as well, unlike AWS; PREFIX.seqpacket leads into the enclave",
    )
    add(
        "--boot-timeout-s",
        metavar="S",
        help=f"how long the heartbeat may take (default: {BOOT_TIMEOUT_S_DEFAULT:g})",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which enclave."""
    add_image_options(parser)
    add_machine_options(parser)
    add = parser.add_argument
    add("--from-qemu", metavar="TEXT", help="settings as options of qemu-system-x86_64 -M nitro-enclave,...")
    add(
        "--from",
        dest="snapshot_path",
        metavar="FILE",
        type=Path,
        help="go on from a file of vmm snapshot instead of booting; the image may be left out",
    )
    add(
        "--warm",
        metavar="KIND",
        help="off (the default), kernel or image: go on from a saved machine of it, or save one for later",
    )
    add("--name", *("--enclave-name",), metavar="NAME", help="what vmm ps calls it (default: the image's)")
    add(
        *("--cid", "--enclave-cid"),
        metavar="N",
        help=f"the enclave's vsock address, 0 for a free one (default: {CID_DEFAULT})",
    )
    add(
        "--vsock-path",
        metavar="PREFIX",
        help="unix sockets of the parent: PREFIX leads into the enclave, PREFIX_PORT gets its connections",
    )
    add(
        "--vsock",
        dest="vhost_user_path",
        metavar="vhost-user:PATH",
        type=_vhost_user,
        help="let a vhost-user-vsock daemon serve vsock",
    )
    add(
        "--vsock-stats",
        dest="vhost_user_stats_path",
        metavar="PATH",
        help="the daemon's --stats, where its --heartbeat tells that the enclave has booted",
    )
    add(
        *("--publish", "-p"),
        metavar="[ADDR:]PORT:EPORT",
        action="append",
        help="let this machine's programs reach the enclave's port EPORT at TCP PORT, or at unix:PATH",
    )
    add(
        "--proxy",
        metavar="PORT=HOST:PORT",
        action="append",
        help="let the enclave reach a TCP endpoint at a port of its parent",
    )
    add(
        "--allow",
        metavar="HOST:PORT",
        action="append",
        help="let the enclave reach it by name, through an HTTP proxy on port 3128 of its parent",
    )
    add(
        "--kms",
        metavar="FILE",
        help="serve a local KMS on port 8000 of the enclave's parent, by itself or with settings: --kms=FILE "
        "or --kms=NAME=VALUE,... (pip install 'nitro-vmm[kms]')",
    )
    add(
        "--debug-mode",
        action="store_const",
        const=True,
        help="report PCR0, PCR1, PCR2 and PCR8 as zero, as AWS does",
    )
    add(
        "--console",
        action=argparse.BooleanOptionalAction,
        help="show the console, or not (default: with --debug-mode only, as on AWS)",
    )
    add(
        "--gdb",
        metavar="[ADDR:]PORT",
        help="wait for GDB (target remote) at this TCP port, 0 for a free one, before the guest begins",
    )
    add("--role-arn", metavar="ARN", help="the parent's IAM role, measured into PCR3")
    add("--instance-id", metavar="ID", help="the parent instance (i-...), measured into PCR4")
    add("--enclave-id", metavar="HEX", help="the enclave's id, 16 hexadecimal digits (default: made up)")
    add("--region", metavar="REGION", help="the AWS region in certificates (default: us-east-1)")
    add("--root-key", metavar="PEM", help="sign documents under this key, and not the test root's")
    add("--root-cert", metavar="PEM", help="the certificate of --root-key, if it is in a file of its own")


def _vhost_user(value: str) -> Path:
    kind, _, path = value.partition(":")
    if kind != "vhost-user" or not path:
        raise argparse.ArgumentTypeError(f"{value!r} is not vhost-user:PATH")
    return Path(path)


def plain_config(arguments: argparse.Namespace) -> "PlainConfig | None":
    """What `config_of` will return, if only few options were given and they are right.

    `None` says nothing: `config_of` has to be asked, and finds what is wrong.
    """
    from nitro_vmm.accel import ACCELERATORS  # noqa: PLC0415 - so that --help need not wait for it
    from nitro_vmm.plain_config import PlainConfig  # noqa: PLC0415

    given = {name: value for name in SPELLINGS if (value := getattr(arguments, name, None)) is not None}
    if arguments.eif is not None:
        if "eif_path" in given:
            return None
        given["eif_path"] = arguments.eif
    elsewhere = arguments.config is not None or arguments.from_qemu is not None
    elsewhere = elsewhere or any(
        name.startswith(ENVIRONMENT_PREFIX) and name != ACCELERATOR_VARIABLE for name in os.environ
    )
    given.setdefault("eif_path", given.get("snapshot_path"))
    given.setdefault("accelerator", os.environ.get(ACCELERATOR_VARIABLE, "auto"))
    if elsewhere or given["eif_path"] is None or given.keys() - set(PlainConfig._fields):
        return None
    if given["accelerator"] not in {"auto", *ACCELERATORS} or given.get("warm", "off") not in WARM:
        return None
    for name, least, most in NUMBERS:
        if name in given:
            if not re.fullmatch(r"[1-9][0-9]{0,9}", given[name], re.ASCII):
                return None
            given[name] = int(given[name])
            if not least <= given[name] <= most:
                return None
    if "vsock_path" in given:
        if not given["vsock_path"].isascii():  # what is no UTF-8 is refused
            return None
        given["vsock_path"] = Path(given["vsock_path"])
    return PlainConfig(**given)


def config_of(arguments: argparse.Namespace) -> "EnclaveConfig":
    """The configuration that was asked for, of all its sources.

    Raises:
        UsageError: It cannot be.
    """
    from nitro_vmm.config_sources import load_config  # noqa: PLC0415 - so that --help need not wait for it
    from nitro_vmm.errors import UsageError  # noqa: PLC0415

    qemu = None
    if arguments.from_qemu is not None:
        from nitro_vmm.qemu_options import read_qemu  # noqa: PLC0415

        qemu = read_qemu(arguments.from_qemu)
        for option in qemu.left_out:
            logger.warning("QEMU's %s changes nothing here", option)
    given = {name: value for name in SPELLINGS if (value := getattr(arguments, name, None)) is not None}
    if arguments.eif is not None and arguments.eif_path is not None:
        raise UsageError("give one image", hint="vmm run IMAGE.eif")
    elsewhere = arguments.config is not None or (qemu is not None and "eif_path" in qemu.values)
    elsewhere = elsewhere or arguments.snapshot_path is not None or "NITRO_VMM_EIF_PATH" in os.environ
    if arguments.eif is None and arguments.eif_path is None and not elsewhere:
        raise UsageError("give one image", hint="vmm run IMAGE.eif")
    if arguments.eif is not None:
        given["eif_path"] = arguments.eif
    return load_config(given, spellings=SPELLINGS, path=arguments.config, qemu=qemu)
