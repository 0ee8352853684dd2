"""``nsm kms``."""

# ruff: noqa: PLC0415 - what is slow to load is imported when the command runs
import argparse
import contextlib
import json
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nitro_nsm.commands.options import add_json
from nitro_nsm.errors import HostError, UsageError

if TYPE_CHECKING:
    import ssl

    from nitro_nsm.kms.config import KmsConfig
    from nitro_nsm.kms.service import Kms

SUMMARY = (
    "serve a local KMS that checks attestation documents (needs the extra: pip install 'nitro-nsm[kms]')"
)
EXAMPLES = (
    "nsm kms serve --listen 127.0.0.1:8000 --caller arn:aws:iam::123456789012:role/enclave",
    "nsm kms serve --socket app.vsock_8000 --https --state keys.json",
    "nsm kms authority > kms-authority.pem",
)
INSTALL = "pip install 'nitro-nsm[kms]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take where to listen, whom to trust, and who calls."""
    parser.add_argument(
        "action",
        choices=["serve", "authority"],
        help="serve: be a KMS; authority: print the certificate that clients of --https must trust",
    )
    listen = parser.add_argument_group("where")
    listen.add_argument(
        "--listen", action="append", default=[], metavar="[HOST:]PORT", help="TCP; default: 127.0.0.1:8000"
    )
    listen.add_argument("--socket", action="append", default=[], metavar="PATH", help="a unix socket")
    listen.add_argument(
        "--allow-uid",
        type=int,
        action="append",
        default=[],
        metavar="UID",
        help="let this user's programs connect to the unix sockets, too",
    )
    listen.add_argument(
        "--https", action="store_true", help="speak HTTPS, as kms.REGION.amazonaws.com and localhost"
    )
    checks = parser.add_argument_group("what is believed")
    checks.add_argument(
        "--config",
        metavar="FILE",
        help="JSON, YAML or TOML with the fields of KmsConfig; options override it",
    )
    checks.add_argument(
        "--root",
        default="test",
        metavar="test|aws|FILE",
        help="the root of attestation documents: our own test root (default), AWS's, or a certificate",
    )
    checks.add_argument("--region", help="the region of all keys; default: us-east-1")
    checks.add_argument("--account", help="the account of all keys; default: 123456789012")
    checks.add_argument(
        "--caller", metavar="ARN", help="who calls, as key policies name it; default: the account's root user"
    )
    checks.add_argument(
        "--allow-access-key",
        dest="access_keys",
        action="append",
        metavar="ID",
        help="let in these access keys only; default: all",
    )
    checks.add_argument(
        "--access-key",
        dest="secret_keys",
        action="append",
        metavar="ID:SECRET",
        help="let in requests only that are signed with such a key; default: signatures are not checked",
    )
    checks.add_argument(
        "--max-age",
        dest="max_age_s",
        type=float,
        metavar="SECONDS",
        help="of documents; default: 300, as on AWS",
    )
    checks.add_argument(
        "--forbid-debug", action="store_true", default=None, help="refuse enclaves in debug mode altogether"
    )
    checks.add_argument(
        "--state", dest="state_path", metavar="FILE", help="keep keys here; default: in memory only"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, which both end it as asked: with 0; or print the authority."""
    if options.action == "authority":
        from nitro_nsm.kms.tls import authority_pem

        pem = authority_pem().decode()
        print(json.dumps({"pem": pem}, indent=2) if options.json else pem, end="\n" if options.json else "")
        return 0
    config = _config(options)
    addresses = tcp_addresses(options.listen, elsewhere=bool(options.socket))
    try:
        from nitro_nsm.kms.server import open_kms
        from nitro_nsm.kms.tls import server_context
    except ModuleNotFoundError as error:
        raise HostError(f"a KMS needs {error.name}", hint=INSTALL) from error
    import asyncio

    from nitro_nsm.commands.inputs import trust_root
    from nitro_nsm.pki.store import TEST_ROOT, ensure_test_root

    logging.basicConfig(format="nsm: %(message)s", level=logging.INFO, stream=sys.stderr)
    for noisy in ("botocore", "moto", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    root = ensure_test_root().trust if options.root == TEST_ROOT else trust_root(options.root)
    kms = open_kms(config, root)
    tls = server_context(config.region) if options.https else None
    return asyncio.run(_until_stopped(kms, options, addresses, tls))


async def _until_stopped(
    kms: "Kms", options: argparse.Namespace, addresses: list[tuple[str, int]], tls: "ssl.SSLContext | None"
) -> int:
    import asyncio

    from nitro_nsm.kms.server import serve

    def ready(found: list[str]) -> None:
        said = {"addresses": found, "region": kms.config.region, "root": kms.root.name}
        text = f"KMS of {kms.config.region} under the root {kms.root.name} on {', '.join(found)}"
        print(json.dumps(said) if options.json else text, flush=True)

    sockets = [Path(path) for path in options.socket]
    serving = serve(kms, tcp=addresses, unix=sockets, tls=tls, users=options.allow_uid, ready=ready)
    task = asyncio.ensure_future(serving)
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return 0


def _config(options: argparse.Namespace) -> "KmsConfig":
    """The configuration of the file, with what the options change.

    Raises:
        UsageError: A value is impossible.
        InputError: The file is malformed.
        HostError: The file cannot be read.
    """
    from pydantic import ValidationError

    from nitro_nsm.files import read_settings
    from nitro_nsm.kms.config import KmsConfig
    from nitro_nsm.policy_file import complaints

    fields = {} if options.config is None else read_settings(options.config)
    for name in ("region", "account", "caller", "access_keys", "max_age_s", "forbid_debug", "state_path"):
        if (given := getattr(options, name)) is not None:
            fields[name] = given
    if options.secret_keys is not None:
        pairs = [text.partition(":") for text in options.secret_keys]
        if not all(secret for _, _, secret in pairs):
            raise UsageError("--access-key is not ID:SECRET", hint="nsm kms --help")
        fields["secret_keys"] = {key: secret for key, _, secret in pairs}
    try:
        return KmsConfig.model_validate(fields)
    except ValidationError as error:
        raise UsageError(complaints(error), hint="nsm kms --help") from error


def tcp_addresses(listen: list[str], *, elsewhere: bool) -> list[tuple[str, int]]:
    """Where to listen for TCP.

    Args:
        listen: What `--listen` says, each time.
        elsewhere: Whether there is another place to listen, so that there need be none for TCP.

    Raises:
        UsageError: One of them is no address.
    """
    if not listen and not elsewhere:
        return [("127.0.0.1", 8000)]
    return [_address(text) for text in listen]


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 0xFFFF:
        raise UsageError(f"--listen {text!r} is not an address", hint="write HOST:PORT, or PORT")
    return host.strip("[]") or "127.0.0.1", int(port)
