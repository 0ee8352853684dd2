"""Any guest at all, against all devices at once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from wired_devices import OPERATION, check

operations = st.builds(
    OPERATION.pack, st.integers(0, 13), st.integers(0, 255), st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1)
)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=1), st.lists(operations, max_size=60))
def test_no_guest_makes_a_device_raise(start: bytes, sequence: list[bytes]) -> None:
    check(start + b"".join(sequence))
