"""A shell script as it was written for EC2, which runs here unchanged."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("nitro_vmm.cli", reason="there is no nitro-cli; install nitro-vmm")

import images
from nitro_eif import guest_init

pytestmark = pytest.mark.slow

SCRIPT = r"""
set -euo pipefail

sudo() { "$@"; }   # the script's machine asks for root here and there

sudo nitro-cli build-enclave --docker-uri "$IMAGE" --output-file hello.eif > build.json
PCR0=$(jq -r .Measurements.PCR0 build.json)
test "$(nitro-cli describe-eif --eif-path hello.eif | jq -r .Measurements.PCR0)" = "$PCR0"

vsock-proxy 8000 kms.us-east-1.amazonaws.com 443 --config vsock-proxy.yaml &
PROXY=$!

nitro-cli run-enclave --cpu-count 2 --memory 256 --enclave-cid 16 --eif-path hello.eif --debug-mode > run.json
ENCLAVE_ID=$(jq -r .EnclaveID run.json)
test "$(jq -r .EnclaveCID run.json)" -eq 16
test "$(jq -r .NumberOfCPUs run.json)" -eq 2

STATE=$(nitro-cli describe-enclaves | jq -r ".[] | select(.EnclaveID == \"$ENCLAVE_ID\") | .State")
test "$STATE" = RUNNING
test "$(nitro-cli describe-enclaves | jq -r .[0].Flags)" = DEBUG_MODE
test "$(nitro-cli describe-enclaves | jq -r .[0].Measurements.PCR0)" = "$PCR0"

nitro-cli console --enclave-id "$ENCLAVE_ID" --disconnect-timeout 2 > console.txt
grep -q "hello from the enclave" console.txt

nitro-cli terminate-enclave --enclave-id "$ENCLAVE_ID" | jq -e .Terminated
kill "$PROXY"
wait "$PROXY"
test "$(nitro-cli describe-enclaves | jq length)" -eq 0

if nitro-cli run-enclave --cpu-count 2 --memory 10 --eif-path hello.eif 2> error.txt; then exit 1; fi
grep -q "E26" error.txt
echo done
"""


def container_image(directory: Path) -> Path:
    """An OCI layout with a static busybox that greets and waits."""
    busybox = shutil.which("busybox")
    if busybox is None or b"/lib64/ld-linux-x86-64" in Path(busybox).read_bytes():
        pytest.skip("no static busybox; Debian's package is busybox-static")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.add(busybox, "bin/sh")
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    oci = "application/vnd.oci.image"
    tar = add(layer.getvalue(), f"{oci}.layer.v1.tar")
    command = ["/bin/sh", "-c", "echo hello from the enclave; while :; do read line || :; done < /dev/zero"]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [tar["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": add(json.dumps(config).encode(), f"{oci}.config.v1+json"),
        "layers": [tar],
    }
    index = {
        "schemaVersion": 2,
        "manifests": [add(json.dumps(manifest).encode(), f"{oci}.manifest.v1+json")],
    }
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def blobs(directory: Path, kernel: Path) -> Path:
    """What nitro-cli has in /usr/share/nitro_enclaves/blobs."""
    directory.mkdir()
    shutil.copy(kernel, directory / "bzImage")
    (directory / "cmdline").write_text("reboot=k panic=30 pci=off nomodules console=ttyS0 quiet")
    (directory / "init").write_bytes(guest_init())
    return directory


def test_a_script_for_ec2_runs_unchanged(tmp_path: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("no jq; Debian's package is jq")
    try:
        kernel = images.nitro_kernel()
    except images.ImageError as error:
        pytest.skip(str(error))
    programs = Path(images.command("nitro-cli")).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "IMAGE": str(container_image(tmp_path / "image")),
        "NITRO_CLI_BLOBS": str(blobs(tmp_path / "blobs", kernel)),
        "XDG_RUNTIME_DIR": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }

    (tmp_path / "vsock-proxy.yaml").write_text(
        "allowlist:\n- {address: kms.us-east-1.amazonaws.com, port: 443}\n"
    )
    done = subprocess.run(
        ["bash", "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    subprocess.run(["bash", "-c", "vmm terminate --all"], env=environment, check=False, capture_output=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n")
    assert "Started enclave with enclave-cid: 16, memory: 256 MiB, cpu-ids: [1, 3]" in done.stderr
