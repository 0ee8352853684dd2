"""The requests that QEMU 10.0.2's device was asked, in order, and its replies byte for byte.

QEMU is a peer, not the law: where hardware differs, or where we are stricter on purpose, the difference is
listed here.
"""

from pathlib import Path
from typing import Any

import cbor2

from nitro_nsm import Nsm, NsmConfig, Root, Sign1, parse_document

UNRECORDED_BEFORE = {  # requests that QEMU was asked too, as its later replies show
    "034-extend_18_text": {"ExtendPCR": {"index": 17, "data": b""}},
    "038-extend_19_1025": {"ExtendPCR": {"index": 19, "data": b"a" * 1024}},
    "044-extend_order_swapped": {"ExtendPCR": {"index": 20, "data": b"a" * 4000}},
    "046-lock_16_again": {"LockPCR": {"index": 16}},
    "056-describe_nsm_after_lock20": {"LockPCRs": {"range": 20}},
    "096-att_all_locked": {"LockPCRs": {"range": 32}},
}
DIFFERENT = {
    "016-describe_pcr_65535": "InvalidIndex",  # hardware takes 16 bits, QEMU only indexes of one byte
    "076-att_dup_key": "InvalidOperation",  # QEMU takes one of the two values
}


def test_replies_are_qemus_but_for_what_is_known(vectors: Path, root: Root) -> None:
    requests = sorted((vectors / "nsm").glob("*.req"))
    first = cbor2.loads((vectors / "nsm" / "058-att_empty_map.bin").read_bytes())["Attestation"]["document"]
    pcrs = {index: value for index, value in _claims(first)["pcrs"].items() if index < 16}
    nsm = Nsm(NsmConfig(pcrs=pcrs), root=root)
    assert len(requests) > 40

    for path in requests:
        if path.stem in UNRECORDED_BEFORE:
            assert b"Error" not in nsm.handle(cbor2.dumps(UNRECORDED_BEFORE[path.stem]))
        theirs = path.with_suffix(".bin").read_bytes()
        ours = nsm.handle(path.read_bytes())
        match cbor2.loads(theirs):
            case {"Attestation": {"document": bytes(document)}} if path.stem not in DIFFERENT:
                _same_claims(ours, document)
                continue
            case {"GetRandom": _}:
                theirs, ours = theirs[:22], ours[:22]
            case {"DescribeNSM": {"module_id": str(module_id)} as described}:
                assert theirs == cbor2.dumps({"DescribeNSM": described})
                theirs = cbor2.dumps({"DescribeNSM": described | {"module_id": nsm.module_id}})
                assert module_id == "hello-world"
            case _ if path.stem in DIFFERENT:
                theirs = cbor2.dumps({"Error": DIFFERENT[path.stem]})
        assert ours == theirs, path.stem


def _same_claims(reply: bytes, theirs: bytes) -> None:
    """All but the signature, whom it names, and when: QEMU signs nothing."""
    ours = parse_document(cbor2.loads(reply)["Attestation"]["document"])
    for name, value in _claims(theirs).items():
        if name not in {"module_id", "timestamp", "certificate", "cabundle"}:
            assert getattr(ours, name) == value


def _claims(document: bytes) -> dict[str, Any]:
    claims: dict[str, Any] = cbor2.loads(Sign1.parse(document).payload)
    return claims
