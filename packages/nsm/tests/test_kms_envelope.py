"""Envelopes: as RFC 5652 says, as AWS encodes them, and open for others than us."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from nitro_nsm.kms import ber
from nitro_nsm.kms.envelope import key_identifier, oaep, open_envelope, seal
from nitro_nsm.kms.errors import EnvelopeError

KEY = rsa.generate_private_key(65537, 2048)
SIZES = (0, 1, 15, 16, 32, 999, 1000, 4096)


def sealed(plaintext: bytes, entropy: Callable[[int], bytes] = os.urandom) -> bytes:
    return seal(plaintext, KEY.public_key(), entropy=entropy)


@given(st.binary(max_size=5000))
def test_what_is_sealed_is_opened(plaintext: bytes) -> None:
    assert open_envelope(sealed(plaintext), KEY) == plaintext


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_keys_of_all_allowed_lengths(bits: int) -> None:
    key = rsa.generate_private_key(65537, bits)

    assert open_envelope(seal(b"secret", key.public_key(), entropy=os.urandom), key) == b"secret"


@pytest.mark.parametrize("size", SIZES)
def test_openssl_opens_it_for_a_recipient_by_key_identifier(tmp_path: Path, size: int) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    plaintext = os.urandom(size)
    (tmp_path / "envelope").write_bytes(sealed(plaintext))
    (tmp_path / "recipient.pem").write_bytes(recipient_pem())

    arguments = "cms -decrypt -binary -inform DER -in envelope -recip recipient.pem -out opened"
    subprocess.run(["openssl", *arguments.split()], cwd=tmp_path, check=True, capture_output=True)

    assert (tmp_path / "opened").read_bytes() == plaintext


def test_openssl_refuses_it_for_another_key_identifier(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    (tmp_path / "envelope").write_bytes(sealed(b"secret"))
    (tmp_path / "recipient.pem").write_bytes(recipient_pem(bytes(32)))

    arguments = "cms -decrypt -binary -inform DER -in envelope -recip recipient.pem -out opened"
    finished = subprocess.run(["openssl", *arguments.split()], cwd=tmp_path, check=False, capture_output=True)

    assert finished.returncode == 4  # "an error occurred decrypting"


def recipient_pem(identifier: bytes | None = None) -> bytes:
    """A certificate that has the identifier of the key, and the key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "enclave")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, KEY.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(
            x509.SubjectKeyIdentifier(identifier or key_identifier(KEY.public_key())), critical=False
        )
        .sign(KEY, hashes.SHA256())
    )
    private = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + certificate.public_bytes(Encoding.PEM)


@pytest.mark.parametrize("size", SIZES)
def test_asn1crypto_reads_every_field(size: int) -> None:
    cms = pytest.importorskip("asn1crypto.cms", reason="asn1crypto is not installed")
    plaintext = os.urandom(size)

    enveloped = cms.ContentInfo.load(sealed(plaintext), strict=True)["content"]

    assert enveloped["version"].native == "v2"
    (info,) = enveloped["recipient_infos"]
    recipient = info.chosen
    assert recipient["version"].native == "v2"
    assert recipient["rid"].chosen.native == key_identifier(KEY.public_key())
    algorithm = recipient["key_encryption_algorithm"]
    assert algorithm["algorithm"].native == "rsaes_oaep"
    parameters = algorithm["parameters"].native
    assert parameters["hash_algorithm"]["algorithm"] == "sha256"
    assert parameters["mask_gen_algorithm"]["parameters"]["algorithm"] == "sha256"
    content = enveloped["encrypted_content_info"]
    assert content["content_type"].native == "data"
    assert content["content_encryption_algorithm"]["algorithm"].native == "aes256_cbc"
    key = KEY.decrypt(recipient["encrypted_key"].native, oaep())
    iv = content["content_encryption_algorithm"]["parameters"].native
    decryptor = Cipher(algorithms.AES256(key), modes.CBC(iv)).decryptor()
    padded = decryptor.update(content["encrypted_content"].native) + decryptor.finalize()
    assert padded[: -padded[-1]] == plaintext
    assert padded[-padded[-1] :] == bytes([padded[-1]]) * padded[-1]


def test_the_key_identifier_is_the_hash_of_the_public_key() -> None:
    der = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    assert key_identifier(KEY.public_key()) == hashlib.sha256(der).digest()


def test_it_begins_as_real_answers_of_aws_do() -> None:
    envelope = sealed(b"x" * 32)

    assert envelope[:23].hex() == "308006092a864886f70d010703a0803080020102318201" + ""
    assert envelope[23:37].hex() == "6b308201670201028020" + key_identifier(KEY.public_key())[:4].hex()


def test_an_envelope_may_be_as_long_as_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    envelope = seal(b"secret", KEY.public_key(), entropy=os.urandom)

    monkeypatch.setattr("nitro_nsm.kms.envelope.ENVELOPE_BYTES_MAX", len(envelope))
    assert open_envelope(envelope, KEY) == b"secret"

    monkeypatch.setattr("nitro_nsm.kms.envelope.ENVELOPE_BYTES_MAX", len(envelope) - 1)
    with pytest.raises(EnvelopeError):
        open_envelope(envelope, KEY)


@pytest.mark.parametrize("tag", [0x05, 0x01, 0x80, 0x81])
def test_one_bit_of_a_tag_says_that_a_value_is_constructed(tag: int) -> None:
    assert ber.read(bytes([tag, 0])) == (tag, b"")
    assert ber.read(bytes([tag | 0x20, 0])) == (tag | 0x20, [])


class Cursor:
    """Reads headers one after the other, as AWS's decoder walks through an envelope."""

    def __init__(self, data: bytes) -> None:
        self.data, self.offset = data, 0

    def indefinite(self, tag: int) -> None:
        """A value of indefinite length, whose contents come next. Of a definite one, AWS would skip them."""
        assert self.data[self.offset : self.offset + 2] == bytes([tag, 0x80])
        self.offset += 2

    def definite(self, tag: int) -> bytes:
        assert self.data[self.offset] == tag
        length, width = self.data[self.offset + 1], 0
        assert length != 0x80
        if length & 0x80:
            width = length & 0x7F
            length = int.from_bytes(self.data[self.offset + 2 : self.offset + 2 + width], "big")
        start = self.offset + 2 + width
        self.offset = start + length
        return self.data[start : self.offset]

    def chunks(self) -> Iterator[bytes]:
        while self.data[self.offset] == ber.OCTET_STRING:
            yield self.definite(ber.OCTET_STRING)


@pytest.mark.parametrize("size", SIZES)
def test_the_decoder_of_awss_sdk_finds_what_it_looks_for(size: int) -> None:
    plaintext = os.urandom(size)
    cursor = Cursor(sealed(plaintext))

    cursor.indefinite(ber.SEQUENCE)
    assert cursor.definite(ber.OBJECT_IDENTIFIER).hex() == "2a864886f70d010703"
    cursor.indefinite(ber.CONTEXT_0_CONSTRUCTED)
    cursor.indefinite(ber.SEQUENCE)
    assert cursor.definite(ber.INTEGER) == b"\2"
    recipient = Cursor(Cursor(cursor.definite(ber.SET)).definite(ber.SEQUENCE))
    assert recipient.definite(ber.INTEGER) == b"\2"
    recipient.definite(ber.CONTEXT_0)
    recipient.definite(ber.SEQUENCE)
    encrypted_key = recipient.definite(ber.OCTET_STRING)
    cursor.indefinite(ber.SEQUENCE)
    assert cursor.definite(ber.OBJECT_IDENTIFIER).hex() == "2a864886f70d010701"
    cipher = Cursor(cursor.definite(ber.SEQUENCE))
    assert cipher.definite(ber.OBJECT_IDENTIFIER).hex() == "60864801650304012a"
    iv = cipher.definite(ber.OCTET_STRING)
    cursor.indefinite(ber.CONTEXT_0_CONSTRUCTED)
    content = b"".join(cursor.chunks())
    assert cursor.data[cursor.offset :] == bytes(10)

    decryptor = Cipher(algorithms.AES256(KEY.decrypt(encrypted_key, oaep())), modes.CBC(iv)).decryptor()
    padded = decryptor.update(content) + decryptor.finalize()
    assert padded[: -padded[-1]] == plaintext


def test_envelopes_of_definite_length_are_opened_too() -> None:
    """As other servers may encode them."""

    def definite(node: ber.Node) -> bytes:
        tag, contents = node
        return ber.der(tag, contents if isinstance(contents, bytes) else b"".join(map(definite, contents)))

    assert open_envelope(definite(ber.read(sealed(b"secret"))), KEY) == b"secret"


def test_an_envelope_for_another_key_does_not_open() -> None:
    with pytest.raises(EnvelopeError, match="does not open"):
        open_envelope(sealed(b"secret"), rsa.generate_private_key(65537, 2048))


@given(st.data())
def test_no_changed_envelope_gives_another_secret(data: st.DataObject) -> None:
    envelope = bytearray(sealed(b"secret", entropy=bytes))
    position = data.draw(st.integers(0, len(envelope) - 1))
    envelope[position] ^= data.draw(st.integers(1, 255))

    try:
        opened = open_envelope(bytes(envelope), KEY)
    except EnvelopeError:
        return
    # CBC is not authenticated: IV and content can be changed, which is why nobody decides by what comes out.
    assert len(opened) <= 16


@given(st.binary(max_size=300))
def test_any_bytes_are_an_envelope_or_an_error(data: bytes) -> None:
    with pytest.raises(EnvelopeError):
        open_envelope(data, KEY)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "cut short"),
        ("30", "cut short"),
        ("3001", "cut short"),
        ("0401", "cut short"),
        ("040100ff", "follow the value"),
        ("3080", "cut short"),
        ("30800000ff", "follow the value"),
        ("0480", "without a length"),
        ("1f0101", "several bytes"),
        ("0485ffffffffff", "cannot be"),
        ("0484ffffffff", "cut short"),
        ("0482ff", "cannot be"),
        ("3003308000", "cut short"),
        ("30" + "03" + "3080000000", "lies beyond"),
        ("3080" * 18, "nested deeper"),
    ],
)
def test_what_is_not_ber(data: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ber.read(bytes.fromhex(data))


nodes = st.recursive(
    st.tuples(st.sampled_from([2, 4, 6, 0x80]), st.binary(max_size=300)),
    lambda children: st.tuples(st.sampled_from([0x30, 0x31, 0xA0]), st.lists(children, max_size=4)),
    max_leaves=8,
)


@given(nodes, st.data())
def test_what_is_encoded_is_read_again(node: ber.Node, data: st.DataObject) -> None:
    def encoded(node: ber.Node) -> bytes:
        tag, contents = node
        if isinstance(contents, bytes):
            return ber.der(tag, contents)
        encode = data.draw(st.sampled_from([ber.der, ber.stream]))
        return encode(tag, *map(encoded, contents))

    assert ber.read(encoded(node)) == node


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, "0400"),
        (127, "047f"),
        (128, "048180"),
        (255, "0481ff"),
        (256, "04820100"),
        (65535, "0482ffff"),
        (65536, "0483010000"),
    ],
)
def test_lengths_are_as_short_as_der_wants_them(size: int, head: str) -> None:
    """X.690 §8.1.3 and §10.1."""
    assert ber.der(0x04, bytes(size)) == bytes.fromhex(head) + bytes(size)
