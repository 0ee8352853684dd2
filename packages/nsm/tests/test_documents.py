"""Our documents and those of hardware have the same form: they differ in values only."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import cbor2
import pytest
from cryptography import x509

from nitro_nsm import Nsm, NsmConfig, Root, aws_root, parse_document, verify
from nitro_nsm.testing import seeded_entropy
from vectors import expectations

NEWEST = "aws-26-2026-08-03.cose"
BEFORE_2025_06 = "aws-19-2025-04-01.cose"
START = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECOND = 1_000_000_000


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_ns = int(START.timestamp()) * SECOND

    def __call__(self) -> int:
        return self.now_ns


def attest(nsm: Nsm, **fields: bytes | None) -> bytes:
    document: bytes = cbor2.loads(nsm.handle(cbor2.dumps({"Attestation": fields})))["Attestation"]["document"]
    return document


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nsm(root: Root, clock: Clock) -> Nsm:
    return Nsm(
        NsmConfig(instance_id="i-018e0c27541e1f15a", enclave_id="019fc8255f07a185"),
        root=root,
        entropy=seeded_entropy(4),
        clock=clock,
    )


def der_form(data: bytes) -> Iterator[object]:
    """The tags of a DER value, nested as they are; numbers, strings and bits without their values."""
    while data:
        tag, length, head = data[0], data[1], 2
        if length & 0x80:
            head = 2 + (length & 0x7F)
            length = int.from_bytes(data[2:head], "big")
        body, data = data[head : head + length], data[head + length :]
        if tag & 0x20:
            yield tag, tuple(der_form(body))
        elif tag in {0x01, 0x06}:  # booleans and object identifiers are structure here
            yield tag, body
        else:
            yield tag


def certificate_form(der: bytes) -> object:
    """All of a certificate that is not a value: tags, parts of names, algorithms, extensions."""
    certificate = x509.load_der_x509_certificate(der)
    extensions = []
    for extension in certificate.extensions:
        match extension.value:
            case x509.SubjectKeyIdentifier(digest=digest):
                value: object = len(digest)
            case x509.AuthorityKeyIdentifier(key_identifier=bytes(identifier)):
                value = len(identifier)
            case x509.CRLDistributionPoints() as points:
                url = next(name.value for point in points for name in point.full_name or ())
                value = (url[:-40], len(url), tuple(der_form(points.public_bytes())))
            case other:
                value = other.public_bytes()
        extensions.append((extension.oid, extension.critical, value))
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    is_zonal = ".zonal." in certificate.subject.rfc4514_string()
    return (
        certificate.version,
        tuple(der_form(der)),
        [
            [
                (part.oid, "…" if part.oid == x509.NameOID.COMMON_NAME else part.value)
                for part in certificate.subject
            ]
        ],
        None if is_zonal else life,
        extensions,
    )


def common_name(der: bytes) -> str:
    subject = x509.load_der_x509_certificate(der).subject
    return str(subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def cbor_form(data: bytes) -> bytes:
    """The encoded message with every certificate, key and digest made the same."""
    array = cbor2.loads(data)
    fields = cbor2.loads(array[2])
    for certificate in (fields["certificate"], *fields["cabundle"]):
        head = cbor2.dumps(certificate)[:1]  # two bytes of length follow, for ours and theirs
        data = data.replace(cbor2.dumps(certificate), head + b"**")
    for value in (*fields["pcrs"].values(), array[3], fields["module_id"].encode()):
        data = data.replace(value, b"*" * len(value))
    timestamp = fields["timestamp"].to_bytes(8, "big")
    data = data.replace(b"\x1b" + timestamp, b"\x1b" + b"*" * 8)
    return data[:8] + b"**" + data[10:]  # the length of the payload


@pytest.mark.parametrize("name", [NEWEST, BEFORE_2025_06])
def test_the_message_is_as_hardware_encodes_it(vectors: Path, root: Root, name: str) -> None:
    theirs = (vectors / "attestation" / name).read_bytes()
    payload_map = parse_document(theirs).payload_map
    ours = attest(
        Nsm(NsmConfig(instance_id="i-018e0c27541e1f15a", payload_map=payload_map), root=root),
        public_key=parse_document(theirs).public_key,
    )

    assert cbor_form(ours) == cbor_form(theirs)


@pytest.mark.parametrize("position", range(5), ids=["root", "regional", "zonal", "instance", "leaf"])
def test_each_certificate_is_made_as_hardware_makes_it(vectors: Path, nsm: Nsm, position: int) -> None:
    ours, theirs = (
        (*document.cabundle, document.certificate)[position]
        for document in (
            parse_document(attest(nsm)),
            parse_document((vectors / "attestation" / NEWEST).read_bytes()),
        )
    )

    assert certificate_form(ours) == certificate_form(theirs)


def test_common_names_have_the_forms_of_hardware(vectors: Path, nsm: Nsm) -> None:
    def names(document: bytes) -> list[str]:
        parsed = parse_document(document)
        found = [common_name(certificate) for certificate in (*parsed.cabundle, parsed.certificate)]
        for position in (1, 2):
            int(found[position][:16], 16)
            found[position] = found[position][16:]
        return [name.replace(parsed.module_id, "MODULE") for name in found]

    assert names(attest(nsm)) == names((vectors / "attestation" / NEWEST).read_bytes())


@pytest.mark.parametrize("entry", expectations("attestation"), ids=lambda entry: str(entry["file"]))
def test_zonal_certificates_live_as_long_as_ours_give_or_take_a_day(
    vectors: Path, nsm: Nsm, entry: dict[str, str]
) -> None:
    ours, theirs = (
        x509.load_der_x509_certificate(parse_document(document).cabundle[2])
        for document in (attest(nsm), (vectors / "attestation" / entry["file"]).read_bytes())
    )
    difference = (ours.not_valid_after_utc - ours.not_valid_before_utc) - (
        theirs.not_valid_after_utc - theirs.not_valid_before_utc
    )

    assert abs(difference.total_seconds()) < 86400


def test_the_leaf_is_named_after_enclave_and_second(nsm: Nsm) -> None:
    leaf = x509.load_der_x509_certificate(parse_document(attest(nsm)).certificate)

    assert leaf.serial_number == 0x019FC8255F07A185 << 64 | int(START.timestamp())
    assert leaf.not_valid_before_utc == datetime(2026, 11, 23, 11, 59, 57, tzinfo=UTC)
    assert leaf.not_valid_after_utc == datetime(2026, 11, 23, 15, tzinfo=UTC)


def test_the_root_differs_from_awss_in_key_serial_number_and_signature_only(root: Root) -> None:
    assert certificate_form(root.der) == certificate_form(aws_root().certificate)
    assert root.certificate.subject == x509.load_der_x509_certificate(aws_root().certificate).subject


def test_the_leaf_is_used_until_it_ends_and_each_document_verifies(
    nsm: Nsm, clock: Clock, root: Root
) -> None:
    seen: list[tuple[bytes, ...]] = []
    for hours in range(0, 24 * 50, 3):
        for second in (0.5, 3 * 3600 - 0.001):
            clock.now_ns = int((START.timestamp() + hours * 3600 + second) * 1000) * 1_000_000
            document = verify(
                attest(nsm), at=datetime.fromtimestamp(clock.now_ns / SECOND, UTC), root=root.trust
            )
            chain = (*document.cabundle, document.certificate)
            if not seen or chain != seen[-1]:
                seen.append(chain)

    lives = [len({chain[level] for chain in seen}) for level in range(5)]
    assert lives[0] == 1
    assert lives[1] == 3  # 50 days of 20 each
    assert lives == sorted(lives)
    assert lives[4] == len(seen) <= 24 * 50 / 3


def test_a_clock_that_is_set_back_gets_a_new_leaf(nsm: Nsm, clock: Clock, root: Root) -> None:
    attest(nsm)
    clock.now_ns -= 86_400 * 30 * SECOND

    verify(attest(nsm), at=datetime.fromtimestamp(clock.now_ns / SECOND, UTC), root=root.trust)


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [
        (-3601, 1),
        (-3600, 3),
        (-61, 3),
        (-60, 4),
        (-4, 4),
        (-3, 5),
        (3 * 3600 - 1, 5),
        (3 * 3600, 4),
        (21 * 3600 - 60, 4),
        (21 * 3600 - 59, 3),
    ],
)
def test_certificates_stay_from_their_first_second_until_a_new_leaf_would_outlive_them(
    nsm: Nsm, clock: Clock, seconds: int, kept: int
) -> None:
    def chain() -> list[bytes]:
        document = parse_document(attest(nsm))
        return [*document.cabundle, document.certificate]

    before = chain()
    clock.now_ns += seconds * SECOND
    after = chain()

    assert [one == other for one, other in zip(before, after, strict=True)] == [True] * kept + [False] * (
        5 - kept
    )


def test_two_enclaves_of_an_instance_differ_in_their_module_id_and_not_in_the_instance(root: Root) -> None:
    first, second = (parse_document(attest(Nsm(NsmConfig(), root=root))) for _ in range(2))

    assert first.module_id != second.module_id
    assert first.module_id.split("-enc")[0] == second.module_id.split("-enc")[0]
    assert first.pcrs[4] == second.pcrs[4]
    assert common_name(first.certificate) == f"{first.module_id}.us-east-1.aws"


def test_locked_registers_are_in_the_document_and_others_are_not(nsm: Nsm) -> None:
    for index in (20, 17):
        nsm.handle(cbor2.dumps({"LockPCR": {"index": index}}))
    nsm.handle(cbor2.dumps({"ExtendPCR": {"index": 18, "data": b"unlocked"}}))

    assert list(parse_document(attest(nsm)).pcrs) == [*range(16), 17, 20]


@pytest.mark.parametrize("value", [None, b"", b"x", bytes(1024), bytes(3900)])
@pytest.mark.parametrize("field", ["user_data", "nonce", "public_key"])
def test_what_the_enclave_says_is_signed(nsm: Nsm, root: Root, field: str, value: bytes | None) -> None:
    verified = verify(attest(nsm, **{field: value}), at=START, root=root.trust)

    said = {name: getattr(verified, name) for name in ("user_data", "nonce", "public_key")}
    assert said == dict.fromkeys(said, None) | {field: value}


def test_the_largest_request_with_all_registers_locked_fits_the_reply(nsm: Nsm) -> None:
    nsm.handle(cbor2.dumps({"LockPCRs": {"range": 32}}))
    head = len(cbor2.dumps({"Attestation": {"user_data": bytes(256)}})) - 256

    reply = nsm.handle(cbor2.dumps({"Attestation": {"user_data": bytes(0x1000 - head)}}))

    assert len(reply) <= 0x3000
    assert len(parse_document(cbor2.loads(reply)["Attestation"]["document"]).pcrs) == 32


def test_the_same_entropy_and_clock_give_the_same_document(root: Root) -> None:
    first, second = (
        attest(Nsm(NsmConfig(), root=root, entropy=seeded_entropy(5), clock=Clock(), deterministic=True))
        for _ in range(2)
    )

    assert first == second


def test_a_restored_module_goes_on_where_the_saved_one_was(nsm: Nsm, root: Root, clock: Clock) -> None:
    nsm.handle(cbor2.dumps({"ExtendPCR": {"index": 16, "data": b"x"}}))
    nsm.handle(cbor2.dumps({"LockPCR": {"index": 16}}))
    saved = nsm.state().model_dump_json()

    restored = Nsm(type(nsm.state()).model_validate_json(saved), root=root, clock=clock)

    assert restored.state() == nsm.state()
    ours, theirs = (parse_document(attest(module)) for module in (nsm, restored))
    assert (ours.module_id, ours.pcrs) == (theirs.module_id, theirs.pcrs)
    assert restored.handle(cbor2.dumps({"LockPCR": {"index": 16}})) == cbor2.dumps({"Error": "ReadOnlyIndex"})


def test_without_a_root_there_are_no_documents() -> None:
    assert Nsm(NsmConfig()).handle(cbor2.dumps({"Attestation": {}})) == cbor2.dumps(
        {"Error": "InvalidOperation"}
    )


def test_serial_numbers_and_keys_are_new_each_time(root: Root) -> None:
    chains = [parse_document(attest(Nsm(NsmConfig(), root=root))) for _ in range(3)]

    for first, second in itertools.combinations(chains, 2):
        assert not {*first.cabundle[1:], first.certificate} & {*second.cabundle[1:], second.certificate}


@pytest.mark.parametrize("deterministic", [True, False])
def test_replies_can_be_repeated_where_that_is_asked_for(
    root: Root,
    clock: Clock,
    deterministic: bool,  # noqa: FBT001
) -> None:
    options = {"deterministic": True} if deterministic else {}
    first, second = (
        attest(Nsm(NsmConfig(), root=root, entropy=seeded_entropy(8), clock=clock, **options))
        for _ in range(2)
    )

    assert (first == second) is deterministic
