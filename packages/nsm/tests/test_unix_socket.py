"""Who may connect to a unix socket."""

import socket
import struct

import pytest

from nitro_nsm.unix_socket import allowed_users, may_connect

PROCESS, USER, GROUP = 100, 1001, 1002


class OfSomebody(socket.socket):
    """A connection whose other end belongs to another user, which a test cannot make."""

    def getsockopt(self, level: int, name: int, size: int = 0) -> bytes:  # type: ignore[override]
        assert (level, name, size) == (socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return struct.pack("3i", PROCESS, USER, GROUP)


@pytest.mark.parametrize(("more", "may"), [([], False), ([USER], True), ([GROUP], False), ([PROCESS], False)])
def test_it_is_the_user_who_counts(more: list[int], *, may: bool) -> None:
    with OfSomebody(socket.AF_UNIX) as connection:
        assert may_connect(connection, allowed_users(more)) is may
