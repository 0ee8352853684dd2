"""Where the values of settings begin and end, and what they are when nobody sets them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from nitro_vmm import EnclaveConfig
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.config import Endpoint, KmsSettings


def refused(name: str, value: object) -> set[int | str]:
    """Which settings are wrong when one has this value."""
    try:
        EnclaveConfig.model_validate({"eif_path": "image.eif", name: value})
    except ValidationError as error:
        return {problem["loc"][0] for problem in error.errors()}
    return set()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("memory_mib", [64, 1 << 20], [63, (1 << 20) + 1]),
        ("processors", [1, 15], [0, 16]),
        ("cid", [0, 4, 0xFFFF_FFFE], [-1, 1, 2, 3, 0xFFFF_FFFF]),
        ("boot_timeout_s", [0.001, 1e6], [0, -1]),
        ("enclave_id", ["0123456789abcdef"], ["0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF"]),
        ("region", ["a", "x" * 20], ["", "x" * 21, "EU"]),
        ("name", ["a", "_", "x" * 64, "a.b-c_d9"], ["", "x" * 65, ".a", "-a", "a/b", "ä"]),
        ("proxy", [["1=a:0"], ["4294967294=a:65535"]], [["0=a:1"], ["4294967295=a:1"], ["1=a:65536"]]),
        ("publish", [["0:1"], ["65535:4294967294"]], [["1:0"], ["1:4294967295"], ["65536:1"], ["web"]]),
        ("gdb", ["0", 65535, "::1:1"], ["65536", -1, "a"]),
    ],
)
def test_bounds(name: str, good: list[object], bad: list[object]) -> None:
    assert [refused(name, value) for value in good] == [set()] * len(good)
    assert [refused(name, value) for value in bad] == [{name}] * len(bad)


def test_what_is_so_when_nobody_says_otherwise() -> None:
    config = EnclaveConfig(eif_path=Path("image.eif"))

    assert (config.cid, config.boot_timeout_s, config.region) == (16, 180.0, "us-east-1")
    assert (config.memory_mib, config.processors, config.enclave_id) == (None, None, None)
    assert (config.debug_mode, config.shows_console, config.seqpacket) == (False, False, False)
    assert KmsSettings().port == 8000


@pytest.mark.parametrize(
    ("text", "host", "port"), [("a:1", "a", 1), ("[::1]:80", "::1", 80), ("127.0.0.1:0", "127.0.0.1", 0)]
)
def test_an_endpoint_is_written_as_it_is_read(text: str, host: str, port: int) -> None:
    endpoint = Endpoint.model_validate(Endpoint.parse(text))

    assert (endpoint.host, endpoint.port, str(endpoint)) == (host, port, text)


def test_exit_codes_are_those_that_the_manual_promises() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "ENDED": 0,
        "FAILED": 1,
        "USAGE": 2,
        "IMAGE": 3,
        "HOST": 4,
        "BOOT_TIMEOUT": 5,
        "PANIC": 10,
        "CRASH": 11,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }
