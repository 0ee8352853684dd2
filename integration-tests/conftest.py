import pytest

pytest.register_assert_rewrite("vsock_guest", "vsock_scenarios")
