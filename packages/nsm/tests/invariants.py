"""What holds for any bytes: the bodies of property tests and of the fuzz targets."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from nitro_nsm import DocumentError, ErrorCode, Nsm, NsmConfig, Root, verify
from nitro_nsm.cose import sign1
from nitro_nsm.module import RESPONSE_BYTES_MAX
from nitro_nsm.pki.issuer import Issuer
from nitro_nsm.testing import seeded_entropy

NOW_S = 1_795_435_200
NOW = datetime.fromtimestamp(NOW_S, UTC)
ROOT = Root.create("test", entropy=seeded_entropy(6))
ENCLAVE_ID = "019fc8255f07a185"
INSTANCE_ID = "i-0123456789abcdef0"
CREDENTIALS = Issuer(
    ROOT,
    region="us-east-1",
    instance_id=INSTANCE_ID,
    enclave_id=ENCLAVE_ID,
    entropy=seeded_entropy(7),
).credentials(NOW_S)
CHANGING = {"ExtendPCR", "LockPCR", "LockPCRs"}
MESSAGE_BYTES_MAX = 0x3000


class RequestChecker:
    """A module that is asked one thing after another, and looked at after each."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start over, with registers that can still change."""
        self.nsm = Nsm(
            NsmConfig(instance_id=INSTANCE_ID, enclave_id=ENCLAVE_ID),
            root=ROOT,
            entropy=bytes,
            clock=lambda: NOW_S * 1_000_000_000,
        )
        self.state = self.nsm.state()

    def check(self, request: bytes) -> None:
        """Ask, and expect a reply that fits; an error leaves the registers as they were."""
        reply = self.nsm.handle(request)
        assert 0 < len(reply) <= RESPONSE_BYTES_MAX
        name, body = _opened(cbor2.loads(reply))
        state = self.nsm.state()
        if name == "Error":
            assert body in {code.value for code in ErrorCode}
        if name not in CHANGING:
            assert state == self.state
        assert self.state.locked <= state.locked
        for index in self.state.locked:
            assert state.pcrs[index] == self.state.pcrs[index]
        self.state = state
        if len(state.locked) == len(state.pcrs):
            self.restart()


def check_document(data: bytes) -> None:
    """Verify `data` as a document: it fails as one, if it fails."""
    with suppress(DocumentError):
        verify(data, at=NOW, root=ROOT.trust)


def check_payload(data: bytes) -> None:
    """Verify a document with `data` for its payload, rightly signed."""
    check_document(sign1(data, CREDENTIALS.key, ec.ECDSA(hashes.SHA384())))


def check_certificate(data: bytes, position: int) -> None:
    """Verify a document with `data` for one of its certificates other than the root."""
    chain = [*CREDENTIALS.cabundle, CREDENTIALS.certificate]
    chain[1 + position % 4] = data
    fields = claims() | {"cabundle": chain[:-1], "certificate": chain[-1]}
    check_document(cbor2.dumps([b"\xa1\x01\x38\x22", {}, cbor2.dumps(fields), bytes(96)]))


def claims() -> dict[str, Any]:
    """The fields of a document that verifies at `NOW`."""
    return {
        "module_id": f"{INSTANCE_ID}-enc{ENCLAVE_ID}",
        "digest": "SHA384",
        "timestamp": NOW_S * 1000,
        "pcrs": {0: bytes(48)},
        "certificate": CREDENTIALS.certificate,
        "cabundle": list(CREDENTIALS.cabundle),
        "public_key": None,
        "user_data": None,
        "nonce": None,
    }


def _opened(reply: object) -> tuple[str, object]:
    match reply:
        case str(name):
            return name, None
        case dict() if len(reply) == 1:
            name, body = next(iter(reply.items()))
            assert isinstance(name, str)
            return name, body
    raise AssertionError(f"{reply!r} is no reply")


def request_seeds() -> list[bytes]:
    """One of each request, for a fuzzer to start from."""
    index = {"index": 16}
    requests = (
        "DescribeNSM",
        "GetRandom",
        {"DescribePCR": index},
        {"ExtendPCR": index | {"data": b"data"}},
        {"LockPCR": index},
        {"LockPCRs": {"range": 17}},
        {"Attestation": {"user_data": b"user", "nonce": b"nonce", "public_key": None}},
    )
    return [cbor2.dumps(request) for request in requests]


def document_seeds() -> list[bytes]:
    """A document, each of its certificates and its payload, behind the byte that says what it is."""
    payload = cbor2.dumps(claims())
    document = sign1(payload, CREDENTIALS.key, ec.ECDSA(hashes.SHA384()))
    certificates = (*CREDENTIALS.cabundle[1:], CREDENTIALS.certificate)
    parts = (document, payload, *certificates)
    return [bytes([choice]) + part for choice, part in enumerate(parts)] + [b"\1\xbf" + payload[1:] + b"\xff"]
