"""What hypothesis draws for vhost-user: messages that are right, nearly right, and not at all."""

from hypothesis import strategies as st

from nitro_vsock.vhost_user import messages
from nitro_vsock.vhost_user.messages import HEADER, MemoryRegion, Message, Request, memory_table

SIZE = 0x4000
"""Bytes of the memory file that descriptors of kind "memory" refer to."""

small = st.integers(0, 4)
near = st.sampled_from([0, 1, 2, 3, 0x100, 0x101, 0x1000, SIZE, SIZE - 1, SIZE + 1, 1 << 32, (1 << 64) - 1])
word = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 128, 1024, 1025, 2048, 65535, (1 << 32) - 1])

regions = st.builds(MemoryRegion, near, near, near, near)
good_region = st.just(MemoryRegion(0, SIZE, 0x7000_0000, 0))

states = st.builds(messages.VRING_STATE.pack, small, word)
addresses = st.builds(
    messages.VRING_ADDRESS.pack,
    small,
    st.just(0),
    *(st.integers(0, SIZE // 16).map(lambda n: 0x7000_0000 + 16 * n) | near for _ in range(3)),
    st.just(0),
)
payloads = st.one_of(
    st.binary(max_size=80),
    near.map(messages.U64.pack),
    states,
    addresses,
    st.lists(good_region | regions, min_size=1, max_size=3).map(memory_table),
    (good_region | regions).map(lambda region: bytes(8) + messages.REGION.pack(*region)),
    st.builds(lambda offset, size: messages.CONFIG.pack(offset, size, 0) + bytes(8), small, word),
)
kinds = st.lists(st.sampled_from(["memory", "event", "pipe"]), max_size=3)
"""What the descriptors that come with a message are."""

requests = st.sampled_from(sorted(Request)) | st.integers(0, 60)
unsent = st.tuples(
    st.builds(Message, requests, payloads, need_reply=st.booleans(), reply=st.just(value=False)), kinds
)
"""A message without its descriptors, and what they are to be."""

streams = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.builds(Message.encode, st.builds(Message, requests, payloads, need_reply=st.booleans())),
        st.builds(HEADER.pack, requests, st.integers(0, 15), word),
    ),
    max_size=6,
).map(b"".join)
