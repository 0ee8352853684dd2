"""A verifier's policy as a file.

Its fields are those of `Policy`. Two of them may name other files, relative to the policy's own: an entry of
`measurements` what `eif describe --json` printed, and an entry of `signers` a certificate.

    measurements: [hello-1.2.json, hello-1.3.json]
    signers: [release.pem]
    forbid_debug: true
    max_age_s: 300
"""

import json
from pathlib import Path

from pydantic import ValidationError

from nitro_nsm.errors import InputError
from nitro_nsm.files import read_file, read_settings
from nitro_nsm.policy import Policy


def read_policy(path: Path) -> Policy:
    """Read a policy from JSON, YAML or TOML, as the file's name ends.

    Raises:
        InputError: A file is malformed, or is not a policy.
        HostError: A file cannot be read.
    """
    try:
        return Policy.model_validate(policy_fields(str(path)))
    except ValidationError as error:
        raise InputError(
            f"{path}: {complaints(error)}", hint="the fields are those of nitro_nsm.Policy"
        ) from error


def policy_fields(name: str) -> dict[str, object]:
    """The fields of a policy's file, with the contents of the files that it names.

    Raises:
        InputError: A file is malformed.
        HostError: A file cannot be read.
    """
    fields = read_settings(name)
    directory = Path(name).parent
    match fields.get("measurements"):
        case list(images):
            fields["measurements"] = [
                measurements(str(directory / image)) if isinstance(image, str) else image for image in images
            ]
    match fields.get("signers"):
        case list(signers):
            fields["signers"] = [
                read_file(str(directory / signer))
                if isinstance(signer, str) and "-----BEGIN" not in signer
                else signer
                for signer in signers
            ]
    return fields


def measurements(name: str) -> object:
    """What the JSON of `eif describe --json` or nitro-cli says, read from a file.

    Raises:
        InputError: It is not JSON.
        HostError: It cannot be read.
    """
    try:
        found: object = json.loads(read_file(name))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name} is not JSON: {error}", hint="give what `eif describe --json` prints"
        ) from error
    return found


def complaints(error: ValidationError) -> str:
    """What is wrong with the fields of a model, each with its place."""
    wrong = error.errors(include_url=False, include_input=False)
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'altogether'}: {item['msg']}" for item in wrong[:8]
    )
