import pytest

pytest.register_assert_rewrite("vsock_machines", "vsock_scenarios")
