"""What verifiers expect of documents, on the command line, in files and in code."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

import invariants
from nitro_nsm import (
    DocumentError,
    HostError,
    InputError,
    Nsm,
    NsmClient,
    NsmConfig,
    Policy,
    Root,
    Step,
    TrustRoot,
    parse_document,
    read_policy,
    verify,
)
from nitro_nsm.cli import main
from nitro_nsm.cose import ES384_PROTECTED
from nitro_nsm.policy import signed_by
from nitro_nsm.testing import seeded_entropy
from test_structure import signature
from vectors import VECTORS

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
IMAGE = {0: b"\1" * 48, 1: b"\2" * 48, 2: b"\3" * 48}
SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def signer() -> Root:
    return Root.create("signer", entropy=seeded_entropy(70))


@pytest.fixture(scope="module")
def document(root: Root, signer: Root) -> bytes:
    return made(root, NsmConfig(pcrs=IMAGE, signing_certificate=signer.der))


def made(root: Root, config: NsmConfig) -> bytes:
    nsm = Nsm(config, root=root, entropy=seeded_entropy(71), clock=lambda: int(NOW.timestamp()) * 10**9)
    return NsmClient(nsm.handle).attest(nonce=b"n")


def refused(document: bytes, root: Root, at: datetime = NOW, **policy: object) -> Step | None:
    try:
        verify(document, at=at, root=root.trust, policy=Policy.model_validate(policy))
    except DocumentError as error:
        return error.step
    return None


@pytest.mark.parametrize(
    ("policy", "step"),
    [
        ({"pcrs": IMAGE}, None),
        ({"pcrs": {5: bytes(48)}}, None),
        ({"pcrs": {0: IMAGE[1]}}, Step.PCRS),
        ({"pcrs": {16: bytes(48)}}, Step.PCRS),
        ({"required_pcrs": [0, 1, 2, 4, 8]}, None),
        ({"required_pcrs": [3]}, Step.PCRS),
        ({"required_pcrs": [16]}, Step.PCRS),
        ({"measurements": [IMAGE]}, None),
        ({"measurements": [{0: bytes(48)}, IMAGE]}, None),
        ({"measurements": [IMAGE, {0: bytes(48)}]}, None),
        ({"measurements": [{0: IMAGE[0]}]}, None),
        ({"measurements": [IMAGE | {2: IMAGE[0]}]}, Step.PCRS),
        ({"measurements": [{0: IMAGE[0], 1: bytes(48)}, {0: bytes(48), 1: IMAGE[1]}]}, Step.PCRS),
        ({"measurements": [IMAGE], "pcrs": {2: IMAGE[0]}}, Step.PCRS),
        ({"forbid_debug": True}, None),
    ],
    ids=repr,
)
def test_registers(document: bytes, root: Root, policy: dict[str, Any], step: Step | None) -> None:
    assert refused(document, root, **policy) is step


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_the_signer_is_whom_pcr8_measures(
    document: bytes, root: Root, signer: Root, encoding: Encoding
) -> None:
    certificate = signer.certificate.public_bytes(encoding)

    assert refused(document, root, signers=[certificate]) is None
    assert refused(document, root, signers=[root.der, certificate]) is None
    assert refused(document, root, signers=[root.der]) is Step.SIGNER
    assert parse_document(document).pcrs[8] == signed_by(certificate)
    assert refused(made(root, NsmConfig(pcrs=IMAGE)), root, signers=[certificate]) is Step.SIGNER


def test_debug_mode_is_refused_where_it_is_forbidden(root: Root) -> None:
    debug = made(root, NsmConfig(pcrs=IMAGE, debug_mode=True))

    assert refused(debug, root) is None
    assert refused(debug, root, forbid_debug=True) is Step.DEBUG_MODE


@pytest.mark.parametrize(
    ("at", "policy", "step"),
    [
        (NOW + 300 * SECOND, {"max_age_s": 300}, None),
        (NOW + 300 * SECOND + SECOND / 1000, {"max_age_s": 300}, Step.AGE),
        (NOW, {"max_age_s": 0}, None),
        (NOW - SECOND, {"max_age_s": 0}, None),
        (NOW + 3 * 3600 * SECOND, {}, None),
        (NOW - 60 * SECOND, {"not_before_leaf": False}, Step.CERTIFICATES),
        (NOW - 3 * SECOND, {}, None),
        (NOW - 3 * SECOND, {"max_skew_s": 3}, None),
        (NOW - 3 * SECOND, {"max_skew_s": 2.999}, Step.TIMESTAMP),
    ],
)
def test_age_and_skew(
    document: bytes, root: Root, at: datetime, policy: dict[str, Any], step: Step | None
) -> None:
    assert refused(document, root, at, **policy) is step


def stamped(**change: object) -> bytes:
    """A document with other claims, rightly signed by a leaf that is valid from 3 s before its time."""
    payload = cbor2.dumps(invariants.claims() | change)
    return cbor2.dumps([ES384_PROTECTED, {}, payload, signature(ES384_PROTECTED, payload)])


@pytest.mark.parametrize(
    ("milliseconds", "policy", "step"),
    [
        (60_000, {}, None),
        (60_001, {}, Step.TIMESTAMP),
        (60_001, {"max_skew_s": 61}, None),
        (1, {"max_skew_s": 0}, Step.TIMESTAMP),
        (-3_000, {}, None),
        (-3_001, {}, Step.TIMESTAMP),
        (-3_001, {"not_before_leaf": False}, None),
    ],
)
def test_a_time_that_cannot_be(milliseconds: int, policy: dict[str, Any], step: Step | None) -> None:
    document = stamped(timestamp=invariants.NOW_S * 1000 + milliseconds)

    assert refused(document, invariants.ROOT, invariants.NOW, **policy) is step


def test_unknown_fields_are_refused_unless_they_are_allowed() -> None:
    document = stamped(future=[1, {"a": b"b"}])

    assert refused(document, invariants.ROOT, invariants.NOW) is Step.STRUCTURE
    policy = Policy(allow_unknown=True)
    verified = verify(document, at=invariants.NOW, root=invariants.ROOT.trust, policy=policy)
    assert verified.unknown == ("future",)
    assert parse_document(document, allow_unknown=True).unknown == ("future",)


def test_a_refusal_names_the_register_and_both_values(document: bytes, root: Root) -> None:
    policy = Policy.model_validate({"measurements": [{0: IMAGE[1]}, {0: IMAGE[2]}]})

    with pytest.raises(DocumentError) as caught:
        verify(document, at=NOW, root=root.trust, policy=policy)

    said = str(caught.value)
    assert said.startswith(f"pcrs: PCR0 is {IMAGE[0].hex()} and must be {IMAGE[1].hex()}")
    assert "none of the other 1" in said


def test_a_refusal_of_the_only_image_speaks_of_no_others(document: bytes, root: Root) -> None:
    with pytest.raises(DocumentError) as caught:
        verify(
            document, at=NOW, root=root.trust, policy=Policy.model_validate({"measurements": [{0: IMAGE[1]}]})
        )

    assert str(caught.value).endswith(IMAGE[1].hex())


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"measurements": [{}]}, "at least 1"),
        ({"measurements": [{"HashAlgorithm": "Sha384 { ... }"}]}, "at least 1"),
        ({"measurements": [{32: bytes(48)}]}, "less than 32"),
        ({"measurements": [{"PCR0": "00"}]}, "at least 48"),
        ({"measurements": ["x"]}, "dictionary"),
        ({"measurements": [{"Measurements": 5}]}, "int"),
        ({"signers": [b"nothing"]}, "neither DER nor PEM"),
        ({"max_age_s": -1}, "greater than or equal to 0"),
        ({"max_age_s": float("nan")}, "max_age_s"),
        ({"max_skew_s": float("inf")}, "max_skew_s"),
        ({"required_pcrs": [32]}, "less than 32"),
        ({"more": 1}, "not permitted"),
    ],
    ids=repr,
)
def test_what_is_no_policy(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Policy.model_validate(fields)


@pytest.mark.parametrize("name", ["policy.json", "policy.yaml", "policy.yml", "policy.toml"])
def test_a_policy_from_a_file(tmp_path: Path, signer: Root, name: str) -> None:
    if name.endswith("ml") and not name.endswith("toml"):
        pytest.importorskip("yaml", reason="the extra `yaml` is not installed")
    described = {"Measurements": {"HashAlgorithm": "Sha384 { ... }", "PCR0": "0x" + IMAGE[0].hex()}}
    (tmp_path / "app.json").write_text(json.dumps(described))
    (tmp_path / "signer.der").write_bytes(signer.der)
    fields = {
        "measurements": ["app.json", {"pcr1": IMAGE[1].hex().upper()}],
        "signers": ["signer.der", signer.certificate.public_bytes(Encoding.PEM).decode()],
        "forbid_debug": True,
        "max_age_s": 300,
    }
    if name == "policy.toml":
        lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items() if key != "measurements"]
        inline = f'["app.json", {{pcr1 = "{IMAGE[1].hex()}"}}]'
        (tmp_path / name).write_text("\n".join([*lines, f"measurements = {inline}"]))
    else:
        (tmp_path / name).write_text(json.dumps(fields))  # JSON is YAML, too

    policy = read_policy(tmp_path / name)

    assert policy.measurements == ({0: IMAGE[0]}, {1: IMAGE[1]})
    assert {signed_by(certificate) for certificate in policy.signers} == {signed_by(signer.der)}
    assert (policy.forbid_debug, policy.max_age_s, policy.max_skew_s) == (True, 300, 60)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("p.json", "{", "p.json is not JSON"),
        ("p.json", "[]", "has no fields"),
        ("p.json", "[" * 100_000, "p.json is not JSON"),
        ("p.toml", "=", "p.toml is not TOML"),
        ("p.yaml", "a: [", "p.yaml is not YAML"),
        ("p.yaml", "!!python/object/apply:os.system [true]", "p.yaml is not YAML"),
        ("p.json", '{"colour": "red"}', "colour: Extra inputs"),
        ("p.json", '{"measurements": ["p.json"]}', "measurements.0"),
        ("p.json", '{"measurements": ["missing"]}', "missing cannot be read"),
        ("p.json", '{"signers": ["p.json"]}', "neither DER nor PEM"),
    ],
)
def test_a_file_that_is_no_policy(tmp_path: Path, name: str, text: str, why: str) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml", reason="the extra `yaml` is not installed")
    (tmp_path / name).write_text(text)

    with pytest.raises((InputError, HostError), match=why):
        read_policy(tmp_path / name)


def test_yaml_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "p.yaml").write_text("forbid_debug: true")

    with pytest.raises(HostError) as caught:
        read_policy(tmp_path / "p.yaml")

    assert caught.value.hint == "pip install 'nitro-nsm[yaml]'"


@pytest.fixture
def attested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert main(["attest", "--pcr", "0=" + IMAGE[0].hex(), "--output", "document"]) == 0
    return "document"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--pcr", "0=" + IMAGE[0].hex(), "--require-pcr", "PCR4", "--max-age", "300", "--forbid-debug"], 0),
        (["--require-pcr", "0=" + IMAGE[1].hex()], 1),
        (["--require-pcr", "3"], 1),
        (["--measurements", "other.json", "--measurements", "app.json"], 0),
        (["--measurements", "other.json"], 1),
        (["--signer", "root.pem"], 1),
        (["--policy", "policy.json"], 1),
        (["--policy", "policy.json", "--measurements", "app.json"], 0),
        (["--policy", "app.json"], 2),
        (["--pcr", "0=" + IMAGE[0].hex(), "--pcr", "0=" + IMAGE[1].hex()], 2),
        (["--max-skew", "-1"], 2),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_options(attested: str, capsys: pytest.CaptureFixture[str], options: list[str], code: int) -> None:
    Path("app.json").write_text(json.dumps({"Measurements": {"PCR0": IMAGE[0].hex()}}))
    Path("other.json").write_text(json.dumps({"PCR0": IMAGE[1].hex()}))
    Path("policy.json").write_text(json.dumps({"measurements": ["other.json"], "forbid_debug": True}))
    main(["pki", "export"])
    Path("root.pem").write_text(capsys.readouterr().out)

    assert main(["verify", "--root", "test", *options, attested]) == code
    said = capsys.readouterr()
    assert "warning" not in said.err


@pytest.mark.parametrize("options", [[], ["--forbid-debug"], ["--max-age", "300"], ["--require-pcr", "0"]])
def test_expecting_no_enclave_is_said_aloud(
    attested: str, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["verify", "--root", "test", *options, attested]) == 0
    assert "any enclave under this root may have made" in capsys.readouterr().err
    assert main(["verify", "--root", "test", "--json", *options, attested]) == 0
    assert json.loads(capsys.readouterr().out)["enclave_named"] is False


@pytest.mark.parametrize(
    ("file", "options", "code", "why"),
    [
        ("02-unknown-key.cose", [], 1, "unknown field"),
        ("02-unknown-key.cose", ["--allow-unknown"], 0, "unknown     new_field_of_2027"),
        ("07-indefinite-inner.cose", [], 0, "VERIFIED"),
        ("48-timestamp-future.cose", ["--at", "2026-11-26T03:43:07Z"], 1, "after the time of verification"),
        ("48-timestamp-future.cose", ["--at", "2026-11-26T03:43:07Z", "--max-skew", "86400"], 0, "VERIFIED"),
        ("48b-timestamp-before-leaf.cose", ["--at", "2026-11-26T03:43:07Z"], 1, "before its certificate"),
        (
            "48b-timestamp-before-leaf.cose",
            ["--at", "2026-11-26T03:43:07Z", "--no-not-before-leaf"],
            0,
            "VERIFIED",
        ),
        ("4e-zero-pcrs.cose", [], 0, "debug mode"),
        ("4e-zero-pcrs.cose", ["--forbid-debug"], 1, "debug mode"),
    ],
)
def test_odd_documents(
    file: str, options: list[str], code: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = VECTORS / "attestation-odd"
    if not directory.exists():
        pytest.skip(f"the vectors are not at {VECTORS}")
    at = [] if "--at" in options else ["--at", "issued"]

    assert (
        main(["verify", "--root", str(directory / "root.pem"), *at, *options, str(directory / file)]) == code
    )
    assert why in capsys.readouterr().out


def test_a_root_of_ones_own_and_a_policy_together(document: bytes, root: Root) -> None:
    own = TrustRoot.load("own", root.der)

    verified = verify(document, at=NOW, root=own, policy=Policy(pcrs=IMAGE, max_age_s=0), nonce=b"n")

    assert verified.root == "own"


@pytest.mark.parametrize(("years", "may"), [(100, True), (100.5, False)])
def test_a_document_may_be_a_hundred_years_old_and_no_older(years: float, *, may: bool) -> None:
    try:
        accepted = Policy(max_age_s=years * 365 * 86400).max_age_s is not None
    except ValueError:
        accepted = False

    assert accepted is may
