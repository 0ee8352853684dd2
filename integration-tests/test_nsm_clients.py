"""Clients of others ask our module where there is no enclave, through the preloaded library."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nitro_nsm import Nsm, NsmConfig, Root, verify
from nitro_nsm.preload import SOCKET_VARIABLE, preload_library
from nitro_nsm.testing import seeded_entropy, serving

pytest.importorskip("aws_nsm_interface")

PROGRAM = """
import json
import aws_nsm_interface as nsm

device = nsm.open_nsm_device()
found = {
    "description": nsm.describe_nsm(device)["module_id"],
    "pcr0": nsm.describe_pcr(device, 0)["data"].hex(),
    "extended": nsm.extend_pcr(device, 16, b"data")["data"].hex(),
    "random": len(nsm.get_random(device, 8)),
}
document = nsm.get_attestation_doc(device, user_data=b"u", nonce=b"n", public_key=b"k")["document"]
found["document"] = document.hex()
nsm.lock_pcrs(device, 17)
try:
    nsm.extend_pcr(device, 16, b"more")
except nsm.IoctlError as error:
    found["refused"] = str(error)
nsm.close_nsm_device(device)
print(json.dumps(found))
"""


def test_aws_nsm_interface(tmp_path: Path) -> None:
    root = Root.create("test", entropy=seeded_entropy(3))
    module = Nsm(NsmConfig(pcrs={0: b"\x07" * 48}), root=root)

    with serving(module, tmp_path / "nsm.sock") as path:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"LD_PRELOAD": str(preload_library()), SOCKET_VARIABLE: str(path)},
            capture_output=True,
            text=True,
            check=True,
        )

    found = json.loads(done.stdout)
    document = verify(bytes.fromhex(found["document"]), at=datetime.now(UTC), root=root.trust)
    assert (found["description"], found["pcr0"], found["random"]) == (module.module_id, "07" * 48, 8)
    assert (document.user_data, document.nonce, document.public_key) == (b"u", b"n", b"k")
    assert document.pcrs[0] == b"\x07" * 48
    assert "ReadOnlyIndex" in found["refused"]
