import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from eif_images import SIGNATURE, bootable, image, parts
from nitro_eif import (
    Eif,
    EifFormatError,
    HostError,
    KeySigner,
    KmsSigner,
    SigningError,
    load_signer,
    make_signature,
    measure,
    pcr8,
    read_signatures,
    remove_signature,
    require_bootable,
    sign,
    validate,
    write_eif,
)
from nitro_eif.image.cose import parse_sign1, sign1
from nitro_eif.image.signature import load_certificate, payload
from nitro_eif.testing import certificate_for, example_contents, example_key, key_pem, self_signed

PCR0 = measure(Eif.parse(image(parts()))).pcr0


def with_signature(data: bytes) -> Eif:
    return Eif.parse(image([*parts(), (SIGNATURE, data)]))


def codes(eif: Eif, now: datetime | None = None) -> list[str]:
    return [finding.code for finding in validate(eif, now=now)]


@pytest.mark.parametrize(
    ("curve", "algorithm", "size"),
    [(ec.SECP256R1(), -7, 64), (ec.SECP384R1(), -35, 96), (ec.SECP521R1(), -36, 132)],
)
def test_a_signature_is_what_awss_reader_reads(curve: ec.EllipticCurve, algorithm: int, size: int) -> None:
    key, certificate = example_key(curve)

    data = make_signature(PCR0, KeySigner(key), certificate)

    (entry,) = cbor2.loads(data)
    assert list(entry) == ["signing_certificate", "signature"]
    assert bytes(entry["signing_certificate"]) == certificate
    protected, unprotected, signed, signature = cbor2.loads(bytes(entry["signature"]))
    assert (cbor2.loads(protected), unprotected, len(signature)) == ({1: algorithm}, {}, size)
    assert cbor2.loads(signed) == {"register_index": 0, "register_value": list(PCR0)}
    eif = with_signature(data)
    read_signatures(eif)[0].verify(PCR0)
    assert codes(eif) == []
    assert measure(eif).pcr8 == pcr8(load_certificate(certificate).public_bytes(Encoding.DER))


def test_signing_replacing_and_removing_keep_table_and_checksum_right(tmp_path: Path) -> None:
    path = tmp_path / "hello.eif"
    write_eif(example_contents(), path)
    unsigned = path.read_bytes()
    small, large = example_key(ec.SECP256R1()), example_key(ec.SECP521R1())

    for key, certificate in (small, large, small):
        measurements = sign(path, KeySigner(key), certificate)
        with Eif.open(path) as eif:
            require_bootable(eif)
            assert eif.header.section_count == 6
            assert measure(eif) == measurements
            assert read_signatures(eif)[0].certificate_pem == certificate
    remove_signature(path)

    assert path.read_bytes() == unsigned


def test_a_replaced_signature_keeps_its_place(tmp_path: Path) -> None:
    key, certificate = example_key()
    path, output = tmp_path / "a.eif", tmp_path / "b.eif"
    k, c, m, r0, r1 = parts()
    path.write_bytes(image([k, c, (SIGNATURE, b"broken"), m, r0, r1]))

    sign(path, KeySigner(key), certificate, output=output)

    with Eif.open(output) as eif:
        require_bootable(eif)
        assert [section.type for section in eif.sections] == [1, 2, 4, 5, 3, 3]
    assert b"broken" in path.read_bytes()


def test_an_image_of_version_2_becomes_version_3_when_it_is_signed(tmp_path: Path) -> None:
    key, certificate = example_key()
    path = tmp_path / "old.eif"
    k, c, _, r0, r1 = parts()
    path.write_bytes(image([k, c, r0, r1], version=2))

    sign(path, KeySigner(key), certificate)

    with Eif.open(path) as eif:
        require_bootable(eif)
        assert eif.version == 3


def test_a_signature_of_another_image_is_found() -> None:
    key, certificate = example_key()

    eif = with_signature(make_signature(bytes(48), KeySigner(key), certificate))

    assert codes(eif) == ["signature-other-image"]
    with pytest.raises(EifFormatError, match="another image"):
        bootable(eif.view)


def test_a_tampered_or_foreign_signature_is_found() -> None:
    key, certificate = example_key()
    other, _ = example_key()
    foreign = sign1(payload(PCR0), KeySigner(other).algorithm, KeySigner(other).sign)
    good = sign1(payload(PCR0), KeySigner(key).algorithm, KeySigner(key).sign)
    wrong_curve_key, _ = example_key(ec.SECP256R1())
    wrong_curve = sign1(payload(PCR0), KeySigner(wrong_curve_key).algorithm, KeySigner(wrong_curve_key).sign)
    array = cbor2.loads(good)
    short = cbor2.dumps([*array[:3], array[3][:10]])
    unnamed = cbor2.dumps([cbor2.dumps({}), *array[1:]])
    for message in (
        foreign,
        good[:-1] + bytes([good[-1] ^ 1]),
        wrong_curve,
        short,
        unnamed,
        b"",
        b"\x84\x40",
    ):
        entry = {"signing_certificate": list(certificate), "signature": list(message)}
        assert codes(with_signature(cbor2.dumps([entry]))) == ["signature-invalid"]


def test_dates_are_checked_against_the_given_time() -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    key, certificate = example_key(not_before=now, not_after=now + timedelta(days=1))
    eif = with_signature(make_signature(PCR0, KeySigner(key), certificate))

    assert codes(eif, now + timedelta(hours=1)) == []
    assert codes(eif, now + timedelta(days=2)) == ["certificate-expired"]
    assert codes(eif, now - timedelta(days=2)) == ["certificate-expired"]


def test_malformed_signature_sections_are_told_apart() -> None:
    key, pem = example_key()
    message = sign1(payload(PCR0), KeySigner(key).algorithm, KeySigner(key).sign)
    entry: dict[str, Any] = {"signing_certificate": list(pem), "signature": list(message)}
    broken: list[Any] = [
        [],
        {},
        None,
        5,
        "text",
        [1],
        [{}],
        [entry | {"signature": message}],
        [entry | {"signing_certificate": pem}],
        [entry | {"signature": [256]}],
        [entry | {"signature": ["a"]}],
        [entry | {"signing_certificate": list(b"no PEM")}],
    ]
    for value in broken:
        assert codes(with_signature(cbor2.dumps(value))) == ["signature-malformed"]
    assert codes(with_signature(cbor2.dumps([entry]) + b"\0")) == ["signature-malformed"]
    assert codes(with_signature(cbor2.dumps([dict(reversed(entry.items()))]))) == ["signature-key-order"]
    assert codes(with_signature(cbor2.dumps([entry, entry]))) == ["signature-many"]
    with pytest.raises(EifFormatError) as caught:
        measure(with_signature(b"\xff"))
    assert caught.value.hint.startswith("sign the image again")


@given(st.binary(max_size=300))
def test_any_bytes_are_cose_or_a_signing_error(data: bytes) -> None:
    key, _ = _ONE
    try:
        parse_sign1(data).verify(key.public_key())
    except SigningError:
        return
    raise AssertionError("random bytes verify")


_ONE = example_key(ec.SECP256R1())


def test_key_and_certificate_must_belong_together() -> None:
    key, _ = example_key()
    for curve in (ec.SECP384R1(), ec.SECP256R1()):
        _, certificate = example_key(curve)
        with pytest.raises(SigningError, match="not for the private key"):
            make_signature(PCR0, KeySigner(key), certificate)


def test_a_certificate_that_makes_the_section_too_large_is_refused() -> None:
    key, certificate = example_key()
    with pytest.raises(SigningError, match="32768"):
        make_signature(PCR0, KeySigner(key), certificate + b"# a comment\n" * 3000)


def test_keys_from_files(tmp_path: Path) -> None:
    key, certificate = example_key()
    plain, locked, other, text = (tmp_path / name for name in ("plain", "locked", "rsa", "text"))
    plain.write_bytes(key_pem(key))
    locked.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    rsa_key = rsa.generate_private_key(65537, 2048)
    other.write_bytes(rsa_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text.write_text("no key")
    curve = tmp_path / "curve"
    curve.write_bytes(key_pem(ec.generate_private_key(ec.SECP256K1())))

    for signer in (
        load_signer(str(plain)),
        load_signer(str(plain), passphrase=b"not needed"),
        load_signer(str(locked), passphrase=b"secret"),
    ):
        make_signature(PCR0, signer, certificate)
    for path, passphrase, reason in (
        (locked, None, "is encrypted"),
        (locked, b"wrong", "wrong passphrase"),
        (other, None, "not an elliptic curve key"),
        (curve, None, "secp256k1"),
        (text, None, "no readable private key"),
    ):
        with pytest.raises(SigningError, match=reason):
            load_signer(str(path), passphrase=passphrase)
    with pytest.raises(HostError, match="missing"):
        load_signer(str(tmp_path / "missing"))


def test_a_key_in_kms_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3", reason="needs the extra kms")
    moto = pytest.importorskip("moto", reason="needs moto, a stand-in for AWS")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with moto.mock_aws():
        client = boto3.client("kms", region_name="eu-west-1")
        for spec in ("ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521"):
            arn = client.create_key(KeySpec=spec, KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
            signer = load_signer(arn)
            assert isinstance(signer, KmsSigner)
            from cryptography.hazmat.primitives.serialization import load_der_public_key

            public = load_der_public_key(client.get_public_key(KeyId=arn)["PublicKey"])
            assert isinstance(public, ec.EllipticCurvePublicKey)
            certificate = certificate_for(public, _ONE[0])

            eif = with_signature(make_signature(PCR0, signer, certificate))

            assert codes(eif) == []
        with pytest.raises(SigningError, match="get_public_key failed"):
            load_signer("arn:aws:kms:eu-west-1:123456789012:key/missing")
    with pytest.raises(SigningError, match="not a KMS key ARN"):
        load_signer("arn:aws:s3:::bucket")


def test_cose_vectors_of_others() -> None:
    folder = Path(__file__).parents[4] / "shared" / "vectors" / "cose"
    if not folder.is_dir():
        pytest.skip("the shared vectors are not here")
    checked = 0
    for path in sorted(folder.glob("gluecose-sign1-verify-*.json")):
        vector = json.loads(path.read_text())
        key = vector.get("key", {})
        body = vector.get("sign1::verify", {})
        if key.get("kty") != "EC" or body.get("external", "") != "" or "taggedCOSESign1" not in body:
            continue
        from base64 import urlsafe_b64decode

        curves: dict[str, ec.EllipticCurve] = {
            "P-256": ec.SECP256R1(),
            "P-384": ec.SECP384R1(),
            "P-521": ec.SECP521R1(),
        }
        x, y = (int.from_bytes(urlsafe_b64decode(key[name] + "==")) for name in ("x", "y"))
        public = ec.EllipticCurvePublicNumbers(x, y, curves[key["crv"]]).public_key()
        message = bytes.fromhex(body["taggedCOSESign1"]["cborHex"])
        if body.get("shouldVerify", True):
            parse_sign1(message).verify(public)
        else:
            with pytest.raises(SigningError):
                parse_sign1(message).verify(public)
        checked += 1
    if not checked:
        pytest.skip("the vectors need what image signatures do not use")


def test_self_signed_certificates_are_of_their_keys() -> None:
    key, _ = example_key()
    assert load_certificate(self_signed(key)).public_key() == key.public_key()


def stale(listed: int, *, last: bool = True) -> bytes:
    """A signed image whose table has another size for the signature than the section's own header."""
    key, certificate = _ONE
    signature = (SIGNATURE, make_signature(PCR0, KeySigner(key), certificate))
    sections = [*parts(), signature] if last else [*parts()[:3], signature, *parts()[3:]]
    place = sections.index(signature)

    def edit(_: list[int], sizes: list[int]) -> None:
        sizes[place] += listed

    return image(sections, edit=edit)


@pytest.mark.parametrize("listed", [-100, -1, 1, 100, 1 << 40])
@pytest.mark.parametrize("last", [True, False])
def test_a_signature_with_a_stale_size_is_replaced_and_removed(
    tmp_path: Path, listed: int, last: object
) -> None:
    path = tmp_path / "x.eif"
    key, certificate = example_key()
    path.write_bytes(stale(listed, last=bool(last)))
    with pytest.raises(EifFormatError), Eif.open(path):
        pass

    sign(path, KeySigner(key), certificate)
    with Eif.open(path) as eif:
        require_bootable(eif)
        assert [section.type for section in eif.sections].index(SIGNATURE) == (5 if last else 3)

    path.write_bytes(stale(listed, last=bool(last)))
    remove_signature(path)
    assert path.read_bytes() == image(parts())


def test_other_faults_of_the_table_are_not_signed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.eif"
    key, certificate = example_key()
    path.write_bytes(image(parts(), edit=lambda _, sizes: sizes.__setitem__(2, 1)))

    with pytest.raises(EifFormatError, match="the table 1"):
        sign(path, KeySigner(key), certificate)
    with pytest.raises(EifFormatError, match="the table 1"):
        remove_signature(path)


@pytest.mark.parametrize(
    ("from_now", "warning"),
    [
        ((-2, -1), "the signing certificate expired on"),
        ((1, 2), "the signing certificate is not valid before"),
        ((-1, 1), None),
    ],
)
def test_signing_with_a_certificate_of_another_time_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], from_now: tuple[int, int], warning: str | None
) -> None:
    from nitro_eif.cli import main

    now = datetime.now(UTC)
    start, end = (now + timedelta(days=days) for days in from_now)
    key, certificate = example_key(not_before=start, not_after=end)
    (tmp_path / "key.pem").write_bytes(key_pem(key))
    (tmp_path / "cert.pem").write_bytes(certificate)
    path = tmp_path / "x.eif"
    write_eif(example_contents(), path)
    signing = [
        "--private-key",
        str(tmp_path / "key.pem"),
        "--signing-certificate",
        str(tmp_path / "cert.pem"),
    ]

    assert main(["sign", str(path), *signing]) == 0

    error = capsys.readouterr().err
    assert ("warning" in error) is (warning is not None)
    assert warning is None or f"eif: warning: {warning}" in error
