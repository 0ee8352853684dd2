"""The fuzzer's body, with hypothesis' bytes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hostile_frontend import hostile_frontend


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400))
def test_any_front_end(data: bytes) -> None:
    hostile_frontend(data)
