"""How much a module and a verifier do in a second of one core: ``python rates.py [SECONDS]``.

Signing and verifying are bounded by OpenSSL's P-384, which differs by a factor of three between machines and
builds. So that limit is measured too, in turns with ours, and the ratio is what to compare. Rates are per
second of processor time, the best of five rounds.
"""

import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import cbor2
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from nitro_nsm import Nsm, NsmConfig, Root, verify

ROUNDS = 5
TARGETS = {"documents": 2000, "GetRandom": 50_000, "verify": 120}


def main() -> None:
    """Measure and print."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
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
        "OpenSSL sign": lambda: key.sign(message, algorithm),
        "documents": lambda: nsm.handle(attestation),
        "GetRandom": lambda: nsm.handle(b"\x69GetRandom"),
        "OpenSSL verify": lambda: public_key.verify(signature, message, algorithm),
        "verify": lambda: verify(document, at=now, root=root.trust),
    }
    best = dict.fromkeys(measured, 0.0)
    for _ in range(ROUNDS):
        for name, call in measured.items():
            best[name] = max(best[name], rate(call, seconds / ROUNDS))

    print(backend.openssl_version_text())
    for name, found in best.items():
        target = f"  (at least {TARGETS[name]})" if name in TARGETS else ""
        print(f"{name:<16}{found:>10.0f} /s{target}")
    print(f"a document costs {best['OpenSSL sign'] / best['documents']:.2f} signatures")
    print(f"verifying one costs {best['OpenSSL verify'] / best['verify']:.2f} verifications")


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
