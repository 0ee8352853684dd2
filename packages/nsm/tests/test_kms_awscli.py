"""The AWS command line administers keys on a local KMS."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("moto", reason="the extra `kms` is not installed")

from kms_world import OPEN

AWS = shutil.which("aws")

Aws = Callable[..., str]


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Aws]:
    if AWS is None:
        pytest.skip("awscli is not installed")
    environment = os.environ | {
        "XDG_DATA_HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "nitro_nsm.cli", "kms", "serve", "--listen", "0", "--json"],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert server.stdout is not None
    address = json.loads(server.stdout.readline())["addresses"][0]

    def run(*arguments: str) -> str:
        assert AWS is not None
        command = [AWS, "--endpoint-url", address, "--output", "text", "kms", *arguments]
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        yield run
    finally:
        server.terminate()
        server.communicate()


def test_keys_are_administered(aws: Aws, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"the secret")
    key_id = aws("create-key", "--description", "mine", "--query", "KeyMetadata.KeyId")

    aws("create-alias", "--alias-name", "alias/app", "--target-key-id", key_id)
    aws("put-key-policy", "--key-id", key_id, "--policy-name", "default", "--policy", OPEN)
    aws("tag-resource", "--key-id", key_id, "--tags", "TagKey=a,TagValue=b")
    plain = f"fileb://{tmp_path}/plain"
    blob = aws("encrypt", "--key-id", "alias/app", "--plaintext", plain, "--query", "CiphertextBlob")
    (tmp_path / "blob").write_bytes(base64.b64decode(blob))
    secret = aws("decrypt", "--ciphertext-blob", f"fileb://{tmp_path}/blob", "--query", "Plaintext")

    assert aws("get-key-policy", "--key-id", key_id, "--policy-name", "default") == OPEN
    assert aws("list-resource-tags", "--key-id", key_id, "--query", "Tags[0].TagValue") == "b"
    assert aws("describe-key", "--key-id", "alias/app", "--query", "KeyMetadata.KeyId") == key_id
    assert base64.b64decode(secret) == b"the secret"


def test_a_mistake_is_said_in_awss_words(aws: Aws) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        aws("describe-key", "--key-id", "alias/nothing")

    assert (
        "An error occurred (NotFoundException) when calling the DescribeKey operation" in caught.value.stderr
    )
