import hashlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from containers import Container
from debian_packages import KERNEL, module, package
from eif_images import fix_crc
from nitro_eif import (
    Eif,
    Metadata,
    Node,
    UsageError,
    aws_bootstrap_ramdisk,
    measure,
    read_ramdisk,
    require_bootable,
    tree_of,
    write_eif,
)
from nitro_eif.cli import main
from nitro_eif.commands import COMMANDS
from nitro_eif.testing import example_contents, example_key, example_ramdisk, key_pem


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    for name, data in {
        "kernel": b"\0" * 0x202 + b"HdrS" + b"\0" * 64,
        "rd0": b"070701a",
        "rd1": b"070701b",
    }.items():
        (tmp_path / name).write_bytes(data)
    arguments = ["--kernel", str(tmp_path / "kernel"), "--cmdline", "reboot=k panic=30"]
    for name in ("rd0", "rd1"):
        arguments += ["--ramdisk", str(tmp_path / name)]
    return arguments


def test_build_then_describe_tell_the_same_measurements(
    parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "hello.eif"

    assert main(["build", *parts, "--output", str(image)]) == 0
    built = capsys.readouterr().out
    assert main(["describe", "--json", str(image)]) == 0
    described = json.loads(capsys.readouterr().out)

    assert built.startswith(f"Output file: {image}\n")
    assert json.loads(built.split("\n", 1)[1]) == described["Measurements"]
    assert described["CheckCRC"] is True
    with Eif.open(image) as eif:
        require_bootable(eif)
        assert eif.cmdline == b"reboot=k panic=30"
        assert [bytes(ramdisk) for ramdisk in eif.ramdisks] == [b"070701a", b"070701b"]
        assert measure(eif).as_json() == described["Measurements"]


def test_describe_shows_what_is_left_of_a_truncated_image(
    parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "hello.eif"
    main(["build", *parts, "--output", str(image)])
    image.write_bytes(image.read_bytes()[:700])
    capsys.readouterr()

    assert main(["describe", str(image)]) == 3
    out = capsys.readouterr().out
    assert "kernel" in out
    assert "section-truncated" in out


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nitro_eif.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.fixture
def image(parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "hello.eif"
    assert main(["build", *parts, "--output", str(path), "--build-time", "2026-01-31T12:00:00Z"]) == 0
    capsys.readouterr()
    return path


@pytest.fixture
def signing(tmp_path: Path) -> list[str]:
    key, certificate = example_key()
    (tmp_path / "key.pem").write_bytes(key_pem(key))
    (tmp_path / "cert.pem").write_bytes(certificate)
    return ["--private-key", str(tmp_path / "key.pem"), "--signing-certificate", str(tmp_path / "cert.pem")]


@pytest.mark.parametrize("arguments", [["--help"], ["describe", "--help"], ["--version"]])
def test_importing_and_help_load_nothing_slow(arguments: list[str]) -> None:
    code = (
        "import sys, nitro_eif, nitro_eif.cli\n"
        "try:\n"
        "    nitro_eif.cli.main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    print(*sys.modules, sep='\\n', file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    imported = set(done.stderr.splitlines())
    assert "nitro_eif.cli" in imported
    assert not {"cryptography", "cbor2", "urllib.request", "ssl", "trio", "unicorn", "tarfile"} & imported


def test_signed_builds_and_later_signatures_describe_alike(
    parts: list[str], signing: list[str], image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = tmp_path / "signed.eif"
    assert main(["build", *parts, *signing, "--output", str(built)]) == 0
    assert main(["sign", str(image), *signing]) == 0
    capsys.readouterr()
    described = []
    for path in (built, image):
        assert main(["describe", "--json", str(path)]) == 0
        described.append(json.loads(capsys.readouterr().out))

    for key in ("Measurements", "IsSigned", "SigningCertificate", "SignatureCheck", "CheckCRC"):
        assert described[0][key] == described[1][key]
    assert list(described[0]) == [
        *("EifVersion", "Measurements", "IsSigned", "SigningCertificate", "CheckCRC", "SignatureCheck"),
        *("ImageName", "ImageVersion", "Metadata"),
    ]
    certificate = described[0]["SigningCertificate"]
    assert certificate["IssuerName"] == {"commonName": "signer", "countryName": "DE"}
    assert certificate["Algorithm"] == "ecdsa-with-SHA384"
    assert re.fullmatch(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4} GMT", certificate["NotBefore"])
    assert re.fullmatch(r"[0-9A-F]{2}(:[0-9A-F]{2})+", certificate["Signature"])
    assert main(["describe", str(image)]) == 0
    assert "the signature is of this image" in capsys.readouterr().out
    assert main(["unsign", str(image)]) == 0
    assert main(["verify", "--signed", str(image)]) == 1


def test_an_unreadable_key_is_an_error_and_never_an_unsigned_file(
    parts: list[str], signing: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.eif"
    (tmp_path / "key.pem").write_text("no key")

    assert main(["build", *parts, *signing, "--output", str(output)]) == 1
    assert main(["build", *parts, *signing[:2], "--output", str(output)]) == 2
    assert main(["build", *parts, *signing[2:], "--private-key", "missing", "--output", str(output)]) == 4
    assert not output.exists()
    assert "key.pem: no readable private key" in capsys.readouterr().err


def test_metadata_comes_from_the_options(
    parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, custom, config = tmp_path / "out.eif", tmp_path / "custom.json", tmp_path / "config"
    custom.write_text('{"Team": "blue", "B": {"z": 1, "a": 2}}')
    config.write_text("#\n#\n# Linux/x86_64 6.6.79-1.amzn2.x86_64 Kernel Configuration\n")
    arguments = [
        "--name",
        "app",
        "--version",
        "7.1",
        "--metadata",
        str(custom),
        "--kernel_config",
        str(config),
    ]
    arguments += [
        "--build-time",
        "2026-01-31T12:00:00+01:00",
        "--build-tool",
        "make",
        "--build-tool-version",
        "9",
    ]

    assert main(["build", *parts, *arguments, "--output", str(output)]) == 0
    capsys.readouterr()
    main(["describe", "--json", str(output)])
    described = json.loads(capsys.readouterr().out)

    assert (described["ImageName"], described["ImageVersion"]) == ("app", "7.1")
    assert described["Metadata"] == {
        "BuildTime": "2026-01-31T12:00:00+01:00",
        "BuildTool": "make",
        "BuildToolVersion": "9",
        "OperatingSystem": "Linux",
        "KernelVersion": "6.6.79",
        "DockerInfo": None,
        "B": {"a": 2, "z": 1},
        "Team": "blue",
    }
    custom.write_text(json.dumps({"long": "x" * 4096}))
    assert main(["build", *parts, "--metadata", str(custom), "--output", str(output)]) == 2
    custom.write_text("[1]")
    assert main(["build", *parts, "--metadata", str(custom), "--output", str(output)]) == 2
    for wrong in ("yesterday", "2026-01-31"):
        assert main(["build", *parts, "--build-time", wrong, "--output", str(output)]) == 2


def test_verify_compares_with_what_is_expected(
    image: Path, signing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["describe", "--json", str(image)])
    pcr0 = json.loads(capsys.readouterr().out)["Measurements"]["PCR0"]

    assert main(["verify", "--pcr0", pcr0.upper(), str(image)]) == 0
    assert main(["verify", "--pcr0", "00" * 48, str(image)]) == 1
    assert main(["verify", "--pcr0", "00", str(image)]) == 2
    assert main(["verify", *signing[2:], str(image)]) == 1
    main(["sign", str(image), *signing])
    assert main(["verify", *signing[2:], str(image)]) == 0
    _, other = example_key()
    Path(signing[3]).write_bytes(other)
    capsys.readouterr()
    assert main(["verify", "--json", *signing[2:], str(image)]) == 1
    assert json.loads(capsys.readouterr().out)["Problems"] == ["the image is signed with another certificate"]


def test_what_is_extracted_is_assembled_again_bit_for_bit(
    image: Path, signing: list[str], tmp_path: Path
) -> None:
    main(["sign", str(image), *signing])
    parts, again = tmp_path / "parts", tmp_path / "again.eif"

    assert main(["extract", str(image), "--output", str(parts)]) == 0
    assert main(["assemble", str(parts), "--output", str(again)]) == 0

    assert again.read_bytes() == image.read_bytes()
    assert {path.name for path in parts.iterdir()} == {
        *("kernel", "cmdline", "metadata.json", "ramdisk-0.cpio", "ramdisk-1.cpio"),
        *("signature.cbor", "signing-certificate.pem", "image.json"),
    }
    assert main(["extract", str(image), "--output", str(parts)]) == 2
    (parts / "image.json").write_text('{"sections": [{"type": 1, "file": "../../etc/passwd"}]}')
    assert main(["assemble", str(parts), "--output", str(again)]) == 3


def test_extracting_says_whether_assembling_gives_the_image_again(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = tmp_path / "longer.eif"
    longer.write_bytes(fix_crc(image.read_bytes() + bytes(8)))

    main(["extract", str(image), "--output", str(tmp_path / "parts"), "--json"])
    exact = json.loads(capsys.readouterr().out)["RebuildsExactly"]
    main(["extract", str(longer), "--output", str(tmp_path / "others"), "--json"])
    not_exact = json.loads(capsys.readouterr().out)["RebuildsExactly"]

    assert (exact, not_exact) == (True, False)


@pytest.mark.parametrize(("kind", "letter"), [(stat.S_IFCHR, "c"), (stat.S_IFBLK, "b")])
def test_devices_in_ramdisks_are_listed_with_their_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: int, letter: str
) -> None:
    path = tmp_path / "x.eif"
    ramdisk = example_ramdisk({"dev": Node(kind | 0o600, device=(5, 1))})
    write_eif(replace(example_contents(), ramdisks=[ramdisk]), path)

    assert main(["extract", str(path), "--tree"]) == 0

    assert re.search(rf"^0  {letter}rw------- +0:0 +5,1  dev$", capsys.readouterr().out, re.MULTILINE)


def test_files_in_ramdisks_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.eif"
    write_eif(example_contents(), path)

    assert main(["extract", str(path), "--tree"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^1  -rwxr-xr-x +0:0 +3  rootfs/bin/app$", out, re.MULTILINE)
    assert main(["extract", str(path), "--tree", "--ramdisk", "0", "--json"]) == 0
    assert [entry["Path"] for entry in json.loads(capsys.readouterr().out)] == ["init"]
    assert main(["extract", str(path), "--tree", "--ramdisk", "2"]) == 2
    assert main(["extract", str(path)]) == 2


def test_diff_names_the_file_that_differs_and_the_registers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a.eif", tmp_path / "b.eif"
    contents = example_contents()
    write_eif(contents, a)
    application = {"cmd": Node.file(b"/bin/app\n"), "rootfs/bin/app": Node.file(b"APP", 0o700)}
    write_eif(replace(contents, ramdisks=[contents.ramdisks[0], example_ramdisk(application)]), b)

    assert main(["diff", str(a), str(a)]) == 0
    capsys.readouterr()
    assert main(["diff", str(a), str(b)]) == 1
    out = capsys.readouterr().out
    assert "ramdisk 1: rootfs/bin/app: mode 0755 became 0700, contents differ, 3 and 3 bytes" in out
    assert "because of ramdisk 1" in out
    assert main(["diff", "--json", str(a), str(b)]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert list(answer["PCRs"]) == ["PCR0", "PCR2"]
    assert [(entry["Path"], entry["PCRs"]) for entry in answer["Differences"]] == [
        ("rootfs/bin/app", ["PCR0", "PCR2"])
    ]


def test_diff_says_when_only_bytes_outside_of_sections_differ(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = tmp_path / "longer.eif"
    longer.write_bytes(image.read_bytes() + b"!")

    assert main(["diff", str(image), str(longer)]) == 1
    out = capsys.readouterr().out
    assert f"file: bytes outside of sections differ, from byte {image.stat().st_size:#x}" in out
    assert "No register changes" in out


def test_pcr_prints_as_nitro_cli_does(signing: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["pcr", "--json", "--input", signing[1], *signing[2:], "--instance-id", "i-0123456789abcdef0"])
        == 0
    )
    values = json.loads(capsys.readouterr().out)

    content = hashlib.sha384(Path(signing[1]).read_bytes()).digest()
    assert values["PCR"] == hashlib.sha384(bytes(48) + content).hexdigest()
    assert list(values) == ["PCR", "PCR8", "PCR4"]
    assert main(["pcr"]) == 2


def test_an_application_image_becomes_two_ramdisks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Container().layout(tmp_path / "layout")
    deb = package(
        tmp_path / "linux.deb", {"nsm.ko": module(), "vsock.ko": module()}, builtin="virtio_mmio.ko"
    )
    (tmp_path / "init").write_bytes(b"init")
    output = tmp_path / "app.eif"
    common = ["build", "--output", str(output), "--init", str(tmp_path / "init")]
    source = ["--image", f"oci:{layout}", "--kernel-package", str(deb)]

    assert main([*common, *source, "--env", "B=2", "--cmd", "--other 'a b'", "--workdir", "/w"]) == 0
    assert "no module vmw_vsock_virtio_transport" in capsys.readouterr().err
    with Eif.open(output) as eif:
        first, second = (tree_of(read_ramdisk(ramdisk)) for ramdisk in eif.ramdisks)
        texts = {name: bytes(second[name].data) for name in ("cmd", "workdir", "user")}
        environment = bytes(second["env"].data).splitlines()
        modules = bytes(first["modules.load"].data)
        assert Metadata.unpack(eif.metadata or b"").build.kernel_version == "6.12.1"
    assert texts == {"cmd": b"/bin/app\n--other\na b\n", "workdir": b"/w\n", "user": b"1000:1000:10,44\n"}
    assert environment[:2] == [b"A=1", b"B=2"]
    assert modules == b"/modules/000-vsock.ko\n/modules/001-nsm.ko\n"

    assert main([*common, *source, "--nitro-cli", "--compress", "gzip"]) == 0
    with Eif.open(output) as eif:
        require_bootable(eif)
        assert bytes(tree_of(read_ramdisk(eif.ramdisks[1]))["cmd"].data) == b"--serve\n"
    assert main([*common, *source, "--module", "none"]) == 2
    assert main([*common, *source, "--user", "nobody"]) == 2
    assert main([*common, *source, "--env", "B"]) == 2
    assert main([*common, "--image", f"oci:{layout}"]) == 2
    assert main([*common, "--rootfs", str(layout), "--kernel-package", str(deb), "--cmd", "'"]) == 2


@pytest.mark.parametrize("name", ["team/app:1.2", ""])
def test_an_image_is_called_what_the_application_is_called_or_by_its_digest(
    tmp_path: Path, name: str
) -> None:
    archive = Container().docker_archive(tmp_path / "app.tar", name)
    (tmp_path / "kernel").write_bytes(KERNEL)
    output = tmp_path / "app.eif"

    code = main(
        [
            *("build", "--image", f"docker-archive:{archive}", "--kernel", str(tmp_path / "kernel")),
            *("--output", str(output)),
        ]
    )

    with Eif.open(output) as eif:
        metadata = Metadata.unpack(eif.metadata or b"")
    assert code == 0
    assert metadata.image_version.startswith("sha256:")
    assert metadata.image_name == (name or metadata.image_version)


def test_awss_blobs_make_awss_bootstrap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name, data in {"bzImage": KERNEL, "cmdline": b"reboot=k\n", "init": b"i", "nsm.ko": b"n"}.items():
        (blobs / name).write_bytes(data)
    root = tmp_path / "root"
    root.mkdir()
    output = tmp_path / "out.eif"

    arguments = ["--rootfs", str(root), "--cmd", "/app", "--blobs", str(blobs), "--workdir", "/w"]
    assert main(["build", *arguments, "--output", str(output)]) == 0

    assert "AWS's init ignores USER and WORKDIR" in capsys.readouterr().err
    with Eif.open(output) as eif:
        assert eif.cmdline == b"reboot=k"
        assert bytes(eif.ramdisks[0]) == aws_bootstrap_ramdisk(b"i", b"n")


def test_the_output_pipe_may_close_early_and_errors_have_no_traceback(image: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m nitro_eif.cli describe {shlex.quote(str(image))} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    done = run("describe", image.parent / "missing.eif")
    assert done.returncode == 4
    assert done.stderr == (
        f"eif: error: {image.parent}/missing.eif: cannot read it: No such file or directory\n"
        "  hint: check the name, and the directory that it is relative to\n"
    )
    assert run("nonsense").returncode == 2


def test_control_characters_of_an_image_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "x.eif"
    write_eif(replace(example_contents(), cmdline=b"\x1b[31mred\xff"), path)

    assert "\x1b" not in run("describe", path).stdout
    odd = example_contents().metadata or b""
    write_eif(replace(example_contents(), metadata=bytes(odd).replace(b"example", b"\\ud800\\u20ac")), path)
    for encoding in ("ascii", "utf-8"):
        for arguments in (["describe"], ["describe", "--json"]):
            done = run(*arguments, path, PYTHONIOENCODING=encoding)
            assert (done.returncode, done.stderr) == (0, "")


def test_completion_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="needs the extra completion")
    assert main(["completion", "bash"]) == 0
    assert "describe" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert re.fullmatch(r"eif \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert re.search(rf"^example:\n  .*\beif {command} ", out, re.MULTILINE)
        assert "exit codes:" in out


def test_sigterm_and_full_disks_leave_nothing_behind(image: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"{shlex.quote(sys.executable)} -m nitro_eif.cli describe {shlex.quote(str(image))} >/dev/full",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert done.stderr == "eif: error: No space left on device\n"
    code = """
import os, signal, sys
import nitro_eif.commands.build, nitro_eif.cli, nitro_eif.image.writer
def stop(*_): os.kill(os.getpid(), signal.SIGTERM)
nitro_eif.image.writer._pieces = lambda *_: iter([b"half"] + [stop() or b""])
sys.exit(nitro_eif.cli.main(sys.argv[1:]))
"""
    output = tmp_path / "out" / "x.eif"
    output.parent.mkdir()
    kernel, ramdisk = image.parent / "kernel", tmp_path / "ramdisk"
    ramdisk.write_bytes(example_ramdisk({"init": Node.file(b"#!", 0o755)}))
    parts = ["--kernel", str(kernel), "--cmdline", "c", "--ramdisk", str(ramdisk), "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", code, "build", *parts], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (143, "")
    assert list(output.parent.iterdir()) == []


def test_the_time_of_a_build_is_in_the_image_only_where_it_is_asked_for() -> None:
    from nitro_eif.image.metadata import build_time

    assert build_time(None, {}) == "1970-01-01T00:00:00+00:00"
    assert build_time(None, {"SOURCE_DATE_EPOCH": "1769860800"}) == "2026-01-31T12:00:00+00:00"
    assert build_time("now", {"SOURCE_DATE_EPOCH": "0"}) > "2026"
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        build_time(None, {"SOURCE_DATE_EPOCH": "today"})


def test_extracting_from_a_broken_image_takes_what_is_there_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, parts = tmp_path / "x.eif", tmp_path / "parts"
    write_eif(example_contents(), path)
    path.write_bytes(path.read_bytes()[:-1])

    assert main(["extract", str(path), "--output", str(parts)]) == 3
    assert "are left in the file" in capsys.readouterr().err
    assert (parts / "cmdline").read_bytes() == example_contents().cmdline
