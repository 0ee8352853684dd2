"""The Nitro Secure Module: bytes of a request in, bytes of the reply out.

A request is one CBOR item, either the bare text of a request without parameters (`"DescribeNSM"`) or a map of
one entry, its name and its parameters (`{"LockPCR": {"index": 16}}`). The reply has the same form, or is
`{"Error": "…"}` (aws-nitro-enclaves-nsm-api, `api/mod.rs`). Keys of replies stand in the order in which
hardware sends them, because some drivers compare bytes: Linux takes random numbers from a GetRandom reply
only after its literal first 19 bytes.

Where hardware is not known to differ, a bad request gets the error that QEMU's device gives.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import cbor2

from nitro_nsm import system
from nitro_nsm.cbor import Value, decode
from nitro_nsm.errors import CborError, ErrorCode, InputError, Refusal
from nitro_nsm.identity import Identity, PlainNsmConfig
from nitro_nsm.pcrs import PCR_COUNT, PcrBank
from nitro_nsm.pki.stored import StoredRoot

if TYPE_CHECKING:
    from nitro_nsm.config import NsmConfig, NsmState
    from nitro_nsm.pki.authority import Root
    from nitro_nsm.signer import Signer

logger = logging.getLogger(__name__)

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
        root: Signs documents. Without one, Attestation is refused with InvalidOperation. One that is stored
            is loaded when the first document is asked for; should it be damaged, that and all others are
            refused with InternalError, and the log says why.
        entropy: Returns as many random bytes as it is asked for.
        clock: Returns the nanoseconds since 1970.
        deterministic: Sign as in RFC 6979, so that the same entropy and clock give the same replies.
    """

    def __init__(
        self,
        start: "NsmConfig | PlainNsmConfig | NsmState",
        *,
        root: "Root | StoredRoot | None" = None,
        entropy: Callable[[int], bytes] = system.entropy,
        clock: Callable[[], int] = system.now_ns,
        deterministic: bool = False,
    ) -> None:
        self._start = _identity(start, root, entropy, clock)
        self._root = root
        self._signer: Signer | None = None
        self._damage = ""
        """Why the root cannot be loaded, once that is known."""
        self._deterministic = deterministic
        self._entropy = entropy
        self._clock = clock
        self._pcrs = PcrBank(self._start.pcrs, self._start.locked)

    @property
    def module_id(self) -> str:
        """The enclave's name on its instance, as in DescribeNSM and documents."""
        return self._start.module_id

    def state(self) -> "NsmState":
        """What to save so that `Nsm(state)` goes on from here.

        Keys and certificates are not part of it, because a saved file should hold no secrets. A restored
        module makes new ones under the root that it is given; its documents differ in nothing else.
        """
        from nitro_nsm.config import NsmState  # noqa: PLC0415 - takes pydantic, and few modules are saved

        now = self._start._replace(pcrs=tuple(self._pcrs.values()), locked=frozenset(self._pcrs.locked()))
        return NsmState(**now._asdict())

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
        if self._root is None:
            raise Refusal(ErrorCode.INVALID_OPERATION, "there is no root to sign documents under")
        if self._signer is None:
            if self._damage:  # said once, because a guest may ask as often as it likes
                raise Refusal(ErrorCode.INTERNAL_ERROR, self._damage)
            self._signer = self._load_signer(self._root)
        signed = self._signer.sign(
            self._pcrs.locked(),
            now_ms=self._clock() // 1_000_000,
            public_key=public_key,
            user_data=user_data,
            nonce=nonce,
        )
        reply = cbor2.dumps({"Attestation": {"document": signed}})
        if len(reply) > RESPONSE_BYTES_MAX:
            raise Refusal(ErrorCode.BUFFER_TOO_SMALL, f"{len(reply)} bytes of {RESPONSE_BYTES_MAX}")
        return reply

    def _load_signer(self, root: "Root | StoredRoot") -> "Signer":
        from nitro_nsm.signer import Signer  # noqa: PLC0415 - takes cryptography, which many never need

        try:
            loaded = root.load() if isinstance(root, StoredRoot) else root
        except InputError as error:
            self._damage = str(error)
            logger.error("no document can be signed: %s; %s", error, error.hint)  # noqa: TRY400 - not our fault
            raise Refusal(ErrorCode.INTERNAL_ERROR, self._damage) from error
        return Signer(loaded, self._start, entropy=self._entropy, deterministic=self._deterministic)

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


def _identity(
    start: "NsmConfig | PlainNsmConfig | NsmState",
    root: "Root | StoredRoot | None",
    entropy: Callable[[int], bytes],
    clock: Callable[[], int],
) -> Identity:
    if not isinstance(start, PlainNsmConfig):
        from nitro_nsm.config import NsmState  # noqa: PLC0415 - loaded already, because this is of it

        if isinstance(start, NsmState):
            return start.identity()
        start = start.plain()
    match root:
        case None:
            host = None
        case StoredRoot():
            host = root.fingerprint
        case _:
            host = root.trust.fingerprint
    return start.launched(host=host, entropy=entropy, clock=clock)


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
