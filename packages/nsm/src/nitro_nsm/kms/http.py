"""AWS's JSON protocol over HTTP/1.1, as bytes in and bytes out (AWS JSON 1.1; Signature Version 4's header).

    POST /  with  X-Amz-Target: TrentService.Decrypt
                  Authorization: AWS4-HMAC-SHA256 Credential=KEY/DATE/REGION/kms/aws4_request, …

An error is a JSON object with `__type` and a message, and the status 400, or 500 where the server is at
fault. Signatures are checked where the configuration has secret keys.
"""

import json
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime

import h11

from nitro_nsm.errors import HostError
from nitro_nsm.kms.errors import KmsError
from nitro_nsm.kms.service import Answer, Kms
from nitro_nsm.kms.signature import check_signature

logger = logging.getLogger("nitro_nsm.kms")

BODY_BYTES_MAX = 1 << 18
"""A key policy has at most 32 KiB and a document 12, and Base64 adds a third; everything else is shorter."""
TARGET = re.compile(r"TrentService\.([A-Za-z]{1,64})")
"""TrentService is the name under which KMS's clients know it."""
CREDENTIAL = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=([A-Za-z0-9]{1,128})/\d{8}/([a-z0-9-]{1,64})/([a-z0-9-]{1,64})/aws4_request,"
)
CONTENT_TYPE = "application/x-amz-json-1.1"


class Conversation:
    """One connection of a client.

    Args:
        kms: Answers the requests.
    """

    def __init__(self, kms: Kms) -> None:
        self._kms = kms
        self._http = h11.Connection(h11.SERVER)
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._count = 0
        self.closed = False
        """Whether the connection is to be closed after what was returned last has been sent."""

    def receive(self, data: bytes) -> bytes:
        """Take what the client sent, and return what to send it.

        Args:
            data: Any number of bytes; none when the client has closed its side.
        """
        sent = bytearray()
        try:
            self._http.receive_data(data)
            while not self.closed and self._next(sent):
                pass
        except h11.RemoteProtocolError as error:
            self._refuse(sent, error)
        return bytes(sent)

    def _next(self, sent: bytearray) -> bool:
        """Handle one event; returns whether there may be more."""
        match self._http.next_event():
            case h11.Request() as request:
                self._request, self._body = request, bytearray()
                if self._http.they_are_waiting_for_100_continue:
                    going_on = h11.InformationalResponse(status_code=100, headers=[])
                    sent += self._http.send(going_on) or b""
            case h11.Data(data=data):
                self._body += data
                if len(self._body) > BODY_BYTES_MAX:
                    raise h11.RemoteProtocolError("the body is too long", error_status_hint=413)
            case h11.EndOfMessage():
                self._answer(sent)
            case h11.ConnectionClosed():
                self.closed = True
            case h11.NEED_DATA | h11.PAUSED:
                return False
        return True

    def _answer(self, sent: bytearray) -> None:
        status, answer = self._asked()
        self._send(sent, status, json.dumps(answer).encode())
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.closed = True

    def _asked(self) -> tuple[int, Answer]:
        self._count += 1
        operation = "a request"
        try:
            operation, access_key = self._addressed()
            try:
                parameters: object = json.loads(self._body or b"{}")
            except (ValueError, RecursionError):
                raise KmsError("SerializationException", "The request is not JSON.") from None
            return 200, self._kms.handle(operation, parameters, access_key=access_key)
        except HostError as error:  # the keys cannot be saved, so nobody may rely on them
            logger.error("%s failed: %s", operation, error)  # noqa: TRY400 - the reason is all in the message
            return 500, {"__type": "KMSInternalException", "message": "The keys cannot be saved."}
        except KmsError as error:
            logger.warning(
                "%s refused: %s: %s%s",
                operation,
                error.kind,
                error.message,
                f" [{error.detail}]" if error.detail else "",
            )
            # Most of AWS's errors have a `message`, this one a `Message`.
            name = "Message" if error.kind == "AccessDeniedException" else "message"
            return error.status, {"__type": error.kind, name: error.message}

    def _addressed(self) -> tuple[str, str]:
        """The operation that is asked for, and the access key that signed the request."""
        headers = {} if self._request is None else dict(self._request.headers)
        target = TARGET.fullmatch(headers.get(b"x-amz-target", b"").decode("latin-1"))
        if self._request is None or self._request.method != b"POST" or target is None:
            raise KmsError("UnknownOperationException", "This is a KMS, which takes POST with X-Amz-Target.")
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        if not authorization:
            raise KmsError("MissingAuthenticationTokenException", "Missing Authentication Token")
        credential = CREDENTIAL.match(authorization)
        if credential is None:
            raise KmsError("IncompleteSignatureException", "The Authorization header is not that of SigV4.")
        access_key, region, service = credential.groups()
        if (region, service) != (self._kms.config.region, "kms"):
            raise KmsError(
                "InvalidSignatureException",
                f"Credential should be scoped to a valid region: {self._kms.config.region}/kms.",
            )
        self._check_signature(self._request, access_key)
        return target[1], access_key

    def _check_signature(self, request: h11.Request, access_key: str) -> None:
        secrets = self._kms.config.secret_keys
        if not secrets:
            return
        if access_key not in secrets or request.target != b"/":
            raise KmsError(
                "UnrecognizedClientException", "The security token included in the request is invalid."
            )
        check_signature(
            request.headers,
            bytes(self._body),
            secret=secrets[access_key].get_secret_value(),
            now=datetime.fromtimestamp(self._kms.clock() / 1e9, UTC),
        )

    def _refuse(self, sent: bytearray, error: h11.RemoteProtocolError) -> None:
        """Answer what is not HTTP, if an answer can still be given, and end the connection."""
        self.closed = True
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            refusal = {"__type": "SerializationException", "message": str(error)}
            self._send(sent, error.error_status_hint, json.dumps(refusal).encode(), [("connection", "close")])

    def _send(self, sent: bytearray, status: int, body: bytes, more: Iterable[tuple[str, str]] = ()) -> None:
        headers = [
            ("content-type", CONTENT_TYPE),
            ("content-length", str(len(body))),
            ("x-amzn-requestid", f"00000000-0000-4000-8000-{self._count:012x}"),
            *more,
        ]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            sent += self._http.send(event) or b""
