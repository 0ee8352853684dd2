"""The Nitro Secure Module: bytes of a request in, bytes of the reply out.

A request is one CBOR item, either the bare text of a request without parameters (`"DescribeNSM"`) or a map of
one entry, its name and its parameters (`{"LockPCR": {"index": 16}}`). The reply has the same form, or is
`{"Error": "…"}` (aws-nitro-enclaves-nsm-api, `api/mod.rs`). Keys of replies stand in the order in which
hardware sends them, because some drivers compare bytes: Linux takes random numbers from a GetRandom reply
only after its literal first 19 bytes.

Where hardware is not known to differ, a bad request gets the error that QEMU's device gives.
"""

from collections.abc import Callable

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from nitro_nsm import system
from nitro_nsm.cbor import Value, decode
from nitro_nsm.config import NsmConfig, NsmState, launched
from nitro_nsm.cose import sign1
from nitro_nsm.document import DIGEST, AttestationDocument, encode_payload
from nitro_nsm.errors import CborError, ErrorCode, Refusal
from nitro_nsm.pcrs import PCR_COUNT, PcrBank
from nitro_nsm.pki.authority import Root
from nitro_nsm.pki.issuer import Issuer

REQUEST_BYTES_MAX = 0x1000
"""Linux's driver refuses longer requests with EMSGSIZE, so a real one never sends them."""
RESPONSE_BYTES_MAX = 0x3000
"""The size of the buffer that Linux's driver offers."""
VERSION = (1, 0, 0)
"""What hardware says of itself: major, minor, patch."""
RANDOM_BYTES = 256
RANDOM_HEAD = cbor2.dumps({"GetRandom": {"random": bytes(RANDOM_BYTES)}})[:-RANDOM_BYTES]
INDEX_MAX = 0xFFFF
"""Indexes and ranges are numbers of 16 bits."""
LOCK_PCR_DONE = cbor2.dumps("LockPCR")
LOCK_PCRS_DONE = cbor2.dumps("LockPCRs")
ERRORS = {code: cbor2.dumps({"Error": code.value}) for code in ErrorCode}

Parameters = dict[int | str, Value]


class Nsm:
    """One enclave's module. It is not safe to use from several threads at once.

    Args:
        start: Who the enclave is, for a module that starts as hardware does at launch; or what `state`
            returned, for one that goes on from there.
        root: Signs documents. Without one, Attestation is refused with InvalidOperation.
        entropy: Returns as many random bytes as it is asked for.
        clock: Returns the nanoseconds since 1970.
        deterministic: Sign as in RFC 6979, so that the same entropy and clock give the same replies.
    """

    def __init__(
        self,
        start: NsmConfig | NsmState,
        *,
        root: Root | None = None,
        entropy: Callable[[int], bytes] = system.entropy,
        clock: Callable[[], int] = system.now_ns,
        deterministic: bool = False,
    ) -> None:
        if isinstance(start, NsmConfig):
            host = root.trust.fingerprint if root else None
            start = launched(start, host=host, entropy=entropy, clock=clock)
        self._start = start
        self._issuer: Issuer | None = None
        if root is not None:
            self._issuer = Issuer(
                root,
                region=start.region,
                instance_id=start.instance_id,
                enclave_id=start.enclave_id,
                entropy=entropy,
                deterministic=deterministic,
            )
        self._ecdsa = ec.ECDSA(hashes.SHA384(), deterministic_signing=deterministic)
        self._entropy = entropy
        self._clock = clock
        self._pcrs = PcrBank(start.pcrs, start.locked)

    @property
    def module_id(self) -> str:
        """The enclave's name on its instance, as in DescribeNSM and documents."""
        return self._start.module_id

    def state(self) -> NsmState:
        """What to save so that `Nsm(state)` goes on from here.

        Keys and certificates are not part of it, because a saved file should hold no secrets. A restored
        module makes new ones under the root that it is given; its documents differ in nothing else.
        """
        return self._start.model_copy(
            update={"pcrs": self._pcrs.values(), "locked": frozenset(self._pcrs.locked())}
        )

    def handle(self, request: bytes) -> bytes:
        """Answer one request. Any bytes get a reply, never an exception."""
        try:
            return self._answer(request)
        except Refusal as refusal:
            return ERRORS[refusal.code]
        except CborError:
            return ERRORS[ErrorCode.INVALID_OPERATION]

    def _answer(self, request: bytes) -> bytes:
        if len(request) > REQUEST_BYTES_MAX:
            raise Refusal(ErrorCode.INPUT_TOO_LARGE, f"{len(request)} bytes of {REQUEST_BYTES_MAX}")
        match call(decode(request, strict=False)):
            case ("GetRandom",):
                return RANDOM_HEAD + self._entropy(RANDOM_BYTES)
            case ("DescribeNSM",):
                return self._describe_nsm()
            case ("DescribePCR", dict(parameters)):
                value, lock = self._pcrs.describe(u16(parameters, "index"))
                return cbor2.dumps({"DescribePCR": {"data": value, "lock": lock}})
            case ("ExtendPCR", dict(parameters)):
                if (data := octets(parameters, "data")) is None:
                    raise Refusal(ErrorCode.INVALID_OPERATION, "no data")
                value = self._pcrs.extend(u16(parameters, "index"), data)
                return cbor2.dumps({"ExtendPCR": {"data": value}})
            case ("LockPCR", dict(parameters)):
                self._pcrs.lock(u16(parameters, "index"))
                return LOCK_PCR_DONE
            case ("LockPCRs", dict(parameters)):
                self._pcrs.lock_range(u16(parameters, "range"))
                return LOCK_PCRS_DONE
            case ("Attestation", dict(parameters)):
                return self._attest(
                    public_key=octets(parameters, "public_key"),
                    user_data=octets(parameters, "user_data"),
                    nonce=octets(parameters, "nonce"),
                )
        raise Refusal(ErrorCode.INVALID_OPERATION, "no such request")

    def _attest(self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None) -> bytes:
        if self._issuer is None:
            raise Refusal(ErrorCode.INVALID_OPERATION, "there is no root to sign documents under")
        now_ms = self._clock() // 1_000_000
        credentials = self._issuer.credentials(now_ms // 1000)
        document = AttestationDocument(
            module_id=self.module_id,
            digest=DIGEST,
            timestamp_ms=now_ms,
            pcrs=self._pcrs.locked(),
            certificate=credentials.certificate,
            cabundle=credentials.cabundle,
            public_key=public_key,
            user_data=user_data,
            nonce=nonce,
            payload_map=self._start.payload_map,
            unknown=(),
        )
        signed = sign1(encode_payload(document), credentials.key, self._ecdsa)
        reply = cbor2.dumps({"Attestation": {"document": signed}})
        if len(reply) > RESPONSE_BYTES_MAX:
            raise Refusal(ErrorCode.BUFFER_TOO_SMALL, f"{len(reply)} bytes of {RESPONSE_BYTES_MAX}")
        return reply

    def _describe_nsm(self) -> bytes:
        major, minor, patch = VERSION
        return cbor2.dumps(
            {
                "DescribeNSM": {
                    "digest": "SHA384",
                    "max_pcrs": PCR_COUNT,
                    "module_id": self.module_id,
                    "locked_pcrs": list(self._pcrs.locked()),
                    "version_major": major,
                    "version_minor": minor,
                    "version_patch": patch,
                }
            }
        )


def call(item: Value) -> tuple[Value, ...]:
    """The name of a request, and its parameters if it has any; an empty tuple if it is not a request."""
    match item:
        case str(name):
            return (name,)
        case dict(entry) if len(entry) == 1:
            return next(iter(entry.items()))
    return ()


def u16(parameters: Parameters, name: str) -> int:
    """The index or range called `name`.

    Raises:
        Refusal: InvalidOperation: it is missing, or not a number of 16 bits.
    """
    value = parameters.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= INDEX_MAX:
        raise Refusal(ErrorCode.INVALID_OPERATION, f"{name} is not a number of 16 bits")
    return value


def octets(parameters: Parameters, name: str) -> bytes | None:
    """The bytes called `name`, or `None` if they are missing or null.

    Text is taken for its UTF-8 bytes, as QEMU's device takes it.

    Raises:
        Refusal: InvalidOperation: it is neither bytes nor text.
    """
    match parameters.get(name):
        case None:
            return None
        case bytes(value):
            return value
        case str(text):
            return text.encode()
    raise Refusal(ErrorCode.INVALID_OPERATION, f"{name} is not bytes")
