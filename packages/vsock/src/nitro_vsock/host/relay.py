"""Move the bytes of two connections to each other, for whoever has no engine that joins them."""

import trio

CHUNK_BYTES = 65536


async def relay(one: trio.SocketStream, other: trio.SocketStream) -> None:
    """Move bytes both ways until both sides have ended; each side's end of writing is passed on.

    A connection that breaks ends both. The streams are left open, because their owner closes them.
    """

    async def move(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        while piece := await source.receive_some(CHUNK_BYTES):
            await sink.send_all(piece)
        await sink.send_eof()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move, other, one)
            nursery.start_soon(move, one, other)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # one side has gone, and so does the other
