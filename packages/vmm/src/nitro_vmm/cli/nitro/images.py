"""``nitro-cli build-enclave``, ``describe-eif``, ``sign-eif`` and ``pcr``: done by nitro-eif's command."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from nitro_vmm.cli.nitro.errors import NitroCliError
from nitro_vmm.cli.streams import tell

BLOBS: Final = "/usr/share/nitro_enclaves/blobs"


def eif(*arguments: str, code: str, refused: bool = False) -> dict[str, Any]:
    """Run ``eif``; returns its JSON.

    Args:
        arguments: Of the command.
        code: What nitro-cli calls its failure.
        refused: Take the description of an image that Nitro would not boot, which nitro-cli does not look at.

    Raises:
        NitroCliError: It failed.
    """
    command = [sys.executable, "-P", "-c", "import sys; from nitro_eif.cli import main; sys.exit(main())"]
    done = subprocess.run([*command, *arguments], capture_output=True, check=False)
    answer: dict[str, Any] = json.loads(done.stdout or b"{}")
    if done.returncode and not (refused and answer.get("CheckCRC")):  # it is an image, and whole
        said = done.stderr.decode(errors="replace").strip()
        raise NitroCliError(code, said.removeprefix("eif: ").removeprefix("error: "))
    return answer


def show(answer: object) -> None:
    """Print JSON as nitro-cli does."""
    text = json.dumps(answer, indent=2, ensure_ascii=False)
    # JSON leaves controls behind 0x7E as they are, such as CSI, which a terminal obeys.
    print(
        "".join(
            letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1] for letter in text
        )
    )


def build(arguments: argparse.Namespace) -> None:
    """Build an image from a container image."""
    if arguments.docker_dir is not None:
        raise NitroCliError(
            "E49", "no container is built here: build the image with docker or podman, and name it"
        )
    blobs = Path(os.environ.get("NITRO_CLI_BLOBS", BLOBS))
    if not blobs.is_dir():
        raise NitroCliError(
            "E52", f"{blobs} is no directory; NITRO_CLI_BLOBS names one, see eif build --blobs"
        )
    tell("Start building the Enclave Image...")
    command = ["build", "--nitro-cli", "--image", arguments.docker_uri, "--blobs", str(blobs)]
    command += [
        "--output",
        arguments.output_file,
        "--json",
        *_given(arguments, "name", "version", "metadata"),
    ]
    command += _given(arguments, "signing_certificate", "private_key")
    answer = eif(*command, code="E48")
    tell("Enclave Image successfully created.")
    show({"Measurements": answer["Measurements"]})


def describe(arguments: argparse.Namespace) -> None:
    """Describe an image."""
    _check_file(arguments.eif_path)
    show(eif("describe", "--json", arguments.eif_path, code="E35", refused=True))


def sign(arguments: argparse.Namespace) -> None:
    """Sign an image in place."""
    _check_file(arguments.eif_path)
    signing = _given(arguments, "signing_certificate", "private_key")
    answer = eif("sign", arguments.eif_path, *signing, "--json", code="E60")
    tell("Enclave Image successfully signed.")
    show({"Measurements": answer["Measurements"]})


def pcr(arguments: argparse.Namespace) -> None:
    """Measure a file or a certificate."""
    for path in (arguments.input, arguments.signing_certificate):
        if path is not None:
            _check_file(path)
    show(eif("pcr", *_given(arguments, "input", "signing_certificate"), "--json", code="E57"))


def _given(arguments: argparse.Namespace, *names: str) -> list[str]:
    options: list[str] = []
    for name in names:
        if (value := getattr(arguments, name)) is not None:
            options += [f"--{name.replace('_', '-')}", value]
    return options


def _check_file(path: str) -> None:
    if not Path(path).is_file():
        raise NitroCliError("E19", f"File: '{path}', failing operation: 'Open'.")
