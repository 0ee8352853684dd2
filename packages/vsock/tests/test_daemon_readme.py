"""What the README says about the daemon works."""

import re
import shlex
from pathlib import Path

import pytest

from nitro_vsock import cli

pytestmark = pytest.mark.usefixtures("any_host")

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.splitlines()
    if line.startswith("vhost-user-vsock --")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*shlex.split(command)[1:], "--check"]) == cli.EXIT_OK
    assert "vms" in capsys.readouterr().out


def test_its_configuration_file_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allowed = tmp_path / "vsock-proxy.yaml"
    allowed.write_text("allowlist: [{address: kms.us-east-1.amazonaws.com, port: 443}]\n")
    (content,) = [block for kind, block in BLOCKS if kind == "yaml"]
    file = tmp_path / "vsock.yaml"
    file.write_text(content.replace("/etc/nitro_enclaves/vsock-proxy.yaml", str(allowed)))
    assert cli.main([f"--config={file}", "--check"]) == cli.EXIT_OK
    assert "kms" in capsys.readouterr().out


def test_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [block for kind, block in BLOCKS if kind == "python" and "FrontendSocket" in block]
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 (our own)
    assert "no vhost-user back-end" in capsys.readouterr().out
