"""The tutorial about KMS works as it is written, with boto3 in enclaves: ``nox -s python-guests``."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import images

pytestmark = pytest.mark.skipif(
    "PYTHON_GUESTS" not in os.environ,
    reason="takes minutes: nox -s python-guests",
)

TEXT = (images.ROOT / "docs/how-to/secret-with-boto3.md").read_text()
STEP_TIMEOUT_S = 600
FIVE_MINUTES_AHEAD = """
import sys
from nitro_nsm import cli, system
now_ns = system.now_ns
system.now_ns = lambda: now_ns() + 301 * 10**9
sys.exit(cli.main(sys.argv[1:]))
"""
"""``nsm`` with another clock."""


def programs() -> dict[str, str]:
    """The tutorial's programs by name."""
    return dict(re.findall(r'^```python title="(.*?)"\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL))


def scripts() -> list[str]:
    """The tutorial's commands, in order."""
    return re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def changed(script: str, *changes: tuple[str, str]) -> str:
    """A script with what is different here."""
    for old, new in changes:
        assert old in script
        script = script.replace(old, new)
    return script


class Reader:
    """Somebody who does the tutorial."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_DATA_HOME": str(directory / "data"),
            "KERNEL": str(images.nitro_kernel()),
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        (directory / "root/app").mkdir(parents=True)
        for name, text in programs().items():
            inside = name in {"forward.py", "secret.py"}
            (directory / ("root/app" if inside else ".") / name).write_text(text)

    def does(self, script: str) -> str:
        """Run commands; returns their output."""
        done = subprocess.run(
            ["/bin/bash", "-euc", script],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=STEP_TIMEOUT_S,
            check=False,
        )
        said = done.stdout.decode(errors="replace")
        print(said)
        assert done.returncode == 0
        return said

    @contextmanager
    def serves(self, arguments: list[str], *, ahead: bool = False) -> Iterator[str]:
        """``nsm kms serve``, perhaps with a clock that is ahead; returns its address."""
        program = [sys.executable, "-c", FIVE_MINUTES_AHEAD] if ahead else [images.command("nsm")]
        with subprocess.Popen(
            [*program, *arguments],
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            assert server.stdout is not None
            try:
                yield server.stdout.readline().split()[-1]
            finally:
                server.terminate()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A reader who has come to the heading "Who gets it"."""
    serve, make, build, allow, *_ = scripts()
    arguments = serve.splitlines()[0].removeprefix("nsm ").removesuffix(" &").split()
    arguments[arguments.index("127.0.0.1:8001")] = "127.0.0.1:0"
    try:
        someone = Reader(tmp_path_factory.mktemp("tutorial"))
    except images.ImageError as error:
        pytest.skip(str(error))
    with someone.serves(arguments) as address:
        endpoint = f"export AWS_ENDPOINT_URL_KMS={address}\n"
        someone.does(endpoint + make)
        someone.does(ours(build))
        someone.does(endpoint + changed(allow, ("kill %1\n", "")))
    return someone


def ours(script: str) -> str:
    """A script that builds, with the clone and the kernel that are here."""
    return script.replace("CLONE", str(images.ROOT)).replace("--kernel-package", "--kernel")


def test_the_image_gets_its_secret(reader: Reader) -> None:
    assert "the secret: the cake is a lie" in reader.does(scripts()[4])


def test_in_debug_mode_it_does_not_and_the_log_says_why(reader: Reader) -> None:
    said = reader.does(scripts()[5])

    assert "refused: An error occurred (AccessDeniedException)" in said
    assert "(PCR0) does not hold, the request has " + "00" * 48 in said


def test_with_one_byte_changed_it_does_not(reader: Reader) -> None:
    said = reader.does(ours(scripts()[6]))

    assert "refused: An error occurred (AccessDeniedException)" in said
    assert "kms:RecipientAttestation:ImageSha384" in said
    assert "(PCR0) does not hold" in said


def test_with_a_document_that_is_too_old_it_does_not(reader: Reader) -> None:
    assert "refused: An error occurred (ValidationException)" in reader.does(scripts()[7])


def test_with_a_document_of_five_minutes_ago_it_does_not(reader: Reader) -> None:
    arguments = ["kms", "serve", "--listen", "127.0.0.1:0", "--https", "--state", "keys.json"]
    with reader.serves(arguments, ahead=True) as address:
        proxy = f"vmm run --console app.eif --proxy 8000={address.removeprefix('https://')}"
        said = reader.does(proxy)

    assert "refused: An error occurred (ValidationException)" in said
    assert "The attestation document is not valid: age." in said
