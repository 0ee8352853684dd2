"""The enclave's security module: its registers, and the root that it signs under."""

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nitro_eif import Measurements
from nitro_nsm import HostError as RootHostError
from nitro_nsm import InputError, Nsm, PlainNsmConfig, StoredRoot, stored_test_root
from nitro_vmm.errors import HostError, UsageError

if TYPE_CHECKING:
    from nitro_nsm import Root, TrustRoot
    from nitro_vmm.plain_config import EnclaveSettings

PEM_BYTES_MAX: Final = 1 << 16
"""A key and a certificate have some two thousand bytes."""


def security_module(config: "EnclaveSettings", measurements: Measurements) -> Nsm:
    """Make the module of an enclave.

    Raises:
        UsageError: The root of the configuration is none.
        HostError: The root cannot be read or made.
    """
    pcrs = {0: measurements.pcr0, 1: measurements.pcr1, 2: measurements.pcr2}
    if measurements.pcr8 is not None:
        pcrs[8] = measurements.pcr8
    nsm_config = PlainNsmConfig(
        pcrs=pcrs,
        role_arn=config.role_arn,
        instance_id=config.instance_id,
        enclave_id=config.enclave_id,
        region=config.region,
        debug_mode=config.debug_mode,
    )
    return Nsm(nsm_config, root=signing_root(config))


def signing_root(config: "EnclaveSettings") -> "Root | StoredRoot":
    """The root that an enclave's documents are signed under.

    Raises:
        UsageError: The configuration's files are none.
        HostError: It cannot be read or made.
    """
    if config.root_key is None:
        try:
            return stored_test_root()
        except RootHostError as error:
            raise HostError(
                str(error),
                hint="set XDG_DATA_HOME to a directory that can be written, or give a root with --root-key",
                code="M24",
            ) from error
    pem = _read(config.root_key)
    if config.root_cert is not None:
        pem += b"\n" + _read(config.root_cert)
    from nitro_nsm import Root  # noqa: PLC0415 - takes cryptography, which the test root does not

    try:
        return Root.load(str(config.root_key), pem)
    except InputError as error:
        raise UsageError(
            str(error),
            hint="`nsm pki show` says where a root is; --root-cert names its certificate",
            code="M25",
        ) from error


def trust_of(config: "EnclaveSettings") -> "TrustRoot":
    """What a verifier of the enclave's documents trusts.

    Raises:
        UsageError, HostError: See `signing_root`.
        NsmError: The test root is damaged.
    """
    root = signing_root(config)
    return (root.load() if isinstance(root, StoredRoot) else root).trust


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe might never end
            raise UsageError(f"{path} is not a regular file", hint="give a file of PEM", code="M16")
        with path.open("rb") as file:
            return file.read(PEM_BYTES_MAX)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", code="M25") from error
