"""How much a module and a verifier do in a second of one core: ``python rates.py [--runs 5] [--json]``.

Signing and verifying are bounded by OpenSSL's P-384, which differs by a factor of three between machines and
builds. So that limit is measured too, in turns with ours, and the ratio is what to compare. Rates are per
second of processor time, medians of all runs.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import cbor2
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from nitro_nsm import Nsm, NsmConfig, Root, verify

PEERS = {"documents": "one signature of OpenSSL", "GetRandom": "", "verify": "one verification of OpenSSL"}
"""What is measured, and what it is bounded by."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Rate a module and a verifier, in turns with OpenSSL.")
    parser.add_argument("--seconds", type=float, default=0.2, help="of each run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    key = ec.generate_private_key(ec.SECP384R1())
    message = os.urandom(4400)  # as long as a document
    algorithm = ec.ECDSA(hashes.SHA384())
    signature, public_key = key.sign(message, algorithm), key.public_key()

    root = Root.create("bench", entropy=os.urandom)
    nsm = Nsm(NsmConfig(pcrs={0: bytes(range(48))}), root=root)
    attestation = cbor2.dumps(
        {"Attestation": {"user_data": bytes(64), "nonce": bytes(32), "public_key": None}}
    )
    document = cbor2.loads(nsm.handle(attestation))["Attestation"]["document"]
    now = datetime.now(UTC)

    measured: dict[str, Callable[[], object]] = {
        "one signature of OpenSSL": lambda: key.sign(message, algorithm),
        "documents": lambda: nsm.handle(attestation),
        "GetRandom": lambda: nsm.handle(b"\x69GetRandom"),
        "one verification of OpenSSL": lambda: public_key.verify(signature, message, algorithm),
        "verify": lambda: verify(document, at=now, root=root.trust),
    }
    rates: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(options.runs):
        for name, call in measured.items():
            rates[name].append(rate(call, options.seconds))

    rows = [row(name, rates[name], peer, rates.get(peer, [])) for name, peer in PEERS.items()]
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
        return
    print(backend.openssl_version_text())
    for found in rows:
        line = f"{found['name']:<12}{found['ours']:>10.0f} /s"
        print(line + (f", {found['ratio']:.2f} times {found['peer']}" if found["peer"] else ""))


def row(name: str, ours: list[float], peer: str, theirs: list[float]) -> dict[str, Any]:
    """What was found, as the other benchmarks of this project say it."""
    found: dict[str, Any] = {
        "name": name,
        "unit": "/s",
        "ours": statistics.median(ours),
        "lowest": min(ours),
        "highest": max(ours),
        "runs": len(ours),
        "less_is_better": False,
        "peer": peer,
        "ours_cpu_s": 1 / statistics.median(ours),
    }
    if theirs:
        found["theirs"] = statistics.median(theirs)
        found["ratio"] = statistics.median(one / two for one, two in zip(ours, theirs, strict=True))
        found["theirs_cpu_s"] = 1 / found["theirs"]
    return found


def rate(call: Callable[[], object], seconds: float) -> float:
    """Calls per second of this process's processor time."""
    count, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        for _ in range(20):
            call()
        count += 20
    return count / spent


if __name__ == "__main__":
    main()
