"""For tests of programs that work with images: small images, keys and archives, made on the spot."""

import io
import tarfile
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from nitro_eif.filesystem.cpio import Node, write_cpio
from nitro_eif.image.metadata import BuildMetadata, Metadata
from nitro_eif.image.writer import Contents


def example_contents() -> Contents:
    """The contents of a small image that breaks no rule of the format; it would not boot."""
    return Contents(
        kernel=bytes(0x202) + b"HdrS" + bytes(0x100),
        cmdline=b"reboot=k panic=30 console=ttyS0",
        ramdisks=[
            example_ramdisk({"init": Node.file(b"#!", 0o755)}),
            example_ramdisk({"cmd": Node.file(b"/bin/app\n"), "rootfs/bin/app": Node.file(b"app", 0o755)}),
        ],
        metadata=Metadata(
            image_name="example", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00")
        ).pack(),
    )


def example_ramdisk(files: dict[str, Node]) -> bytes:
    """A newc archive of these files; parents are not made."""
    file = io.BytesIO()
    write_cpio(file, files.items())
    return file.getvalue()


def example_key(
    curve: ec.EllipticCurve | None = None,
    *,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A fresh private key and its self-signed certificate in PEM, valid for a day around now."""
    key = ec.generate_private_key(curve or ec.SECP384R1())
    return key, self_signed(key, not_before=not_before, not_after=not_after)


def self_signed(
    key: ec.EllipticCurvePrivateKey, *, not_before: datetime | None = None, not_after: datetime | None = None
) -> bytes:
    """A key's self-signed certificate in PEM, valid for a day around now where not said otherwise."""
    return certificate_for(key.public_key(), key, not_before=not_before, not_after=not_after)


def certificate_for(
    public_key: ec.EllipticCurvePublicKey,
    issuer: ec.EllipticCurvePrivateKey,
    *,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> bytes:
    """A certificate in PEM for a key that is elsewhere."""
    now = datetime.now(UTC)
    name = x509.Name(
        [x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"), x509.NameAttribute(NameOID.COMMON_NAME, "signer")]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before or now - timedelta(hours=12))
        .not_valid_after(not_after or now + timedelta(hours=12))
        .sign(issuer, hashes.SHA384())
    )
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key in PEM, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """An uncompressed tar archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def tar_member(  # noqa: D417 - the others are tar's own
    name: str,
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    target: str = "",
    device: tuple[int, int] = (0, 0),
    pax: dict[str, str] | None = None,
) -> tarfile.TarInfo:
    """Describe a member of a tar archive.

    Args:
        name: Its path.
        kind: One of tarfile's types.
        target: Of a link.
    """
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = mode
    member.uid, member.gid = uid, gid
    member.linkname = target
    member.devmajor, member.devminor = device
    member.pax_headers = pax or {}
    return member
