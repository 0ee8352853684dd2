"""Any front-end: bytes and descriptors of its choice, for the property test and the fuzzer alike."""

from nitro_vsock.vhost_user.errors import VhostUserError
from nitro_vsock.vhost_user.messages import Message, Request
from test_vhost_user_backend import MAKE, Session, open_descriptors

KINDS = sorted(MAKE)
HEAD = 4


def hostile_frontend(data: bytes) -> None:
    """The back-end answers or ends the session, and closes every descriptor.

    Args:
        data: What the front-end does. The first byte says how far an orderly one has come before; then four
            bytes for each message (request, flags, descriptors, payload length) and its payload.
    """
    before = open_descriptors()
    session = Session()
    try:
        if data[:1] > b"\x40":
            session.realize()
        if data[:1] > b"\x80":
            session.driver_ok(base=data[0])
        place = 1
        while place + HEAD <= len(data):
            request, flags, descriptors, length = data[place : place + HEAD]
            payload = data[place + HEAD : place + HEAD + length]
            place += HEAD + length
            message = Message(
                request % (max(Request) + 3),
                payload,
                tuple(MAKE[KINDS[(descriptors >> 2) % len(KINDS)]]() for _ in range(descriptors & 3)),
                need_reply=bool(flags & 1),
                reply=flags == 0xFF,
            )
            session.backend.receive(message)
    except VhostUserError:
        pass
    finally:
        session.backend.close()
    assert session.device.rings is None
    assert open_descriptors() == before
