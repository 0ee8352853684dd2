"""Flags, ``--vm`` and YAML files all become the same checked configuration."""

import importlib.machinery
import json
import re
import socket
from importlib.metadata import version
from pathlib import Path

import pytest

from nitro_vsock import cli
from nitro_vsock.arguments import SINGLE, parser
from nitro_vsock.daemon.config import DaemonConfig, VmConfig
from nitro_vsock.daemon.config_file import read_allowlist
from nitro_vsock.daemon.guest import default_spin_us
from nitro_vsock.errors import HostError
from nitro_vsock.host import Destination, Endpoint, Proxied, Published, af_vsock

pytestmark = pytest.mark.usefixtures("any_host")


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> DaemonConfig:
    """What ``--check`` says that the arguments mean."""
    assert cli.main([*arguments, "--check"]) == cli.EXIT_OK
    printed = capsys.readouterr().out
    assert printed.startswith('{\n  "vms"')
    return DaemonConfig.model_validate_json(printed)


def complaint(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """What standard error says: one line, and perhaps a hint."""
    assert cli.main([*arguments, "--check"]) == code
    out, err = capsys.readouterr()
    assert not out
    error, *hints = err.splitlines()
    assert error.startswith("vhost-user-vsock: error: ")
    assert all(hint.startswith("  hint: ") for hint in hints)
    assert len(hints) <= 1
    return err


def test_the_flags_of_vhost_device_vsock_mean_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    found = checked(
        capsys,
        *("--guest-cid=4", "--socket=/tmp/vhost4.socket", "--uds-path=/tmp/vm4.vsock"),
        *("--tx-buffer-size=65536", "--queue-size=128", "--groups=a+b"),
    )
    assert found.vms == (
        VmConfig(
            guest_cid=4,
            socket=Path("/tmp/vhost4.socket"),  # noqa: S108
            uds_path=Path("/tmp/vm4.vsock"),  # noqa: S108
            tx_buffer_size=65536,
            queue_size=128,
            groups=frozenset({"a", "b"}),
        ),
    )


def test_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    vm = checked(capsys, "--socket=s").vms[0]
    assert (vm.guest_cid, vm.queue_size, vm.ok_port) == (3, 1024, "guest")
    assert vm.groups == {"default"}
    assert vm.local_cids == {2}, "a guest that has the parent's address leaves 2 to the host"
    assert VmConfig(guest_cid=16).local_cids == {2, 3}


def test_vms_with_dashes_or_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    found = checked(
        capsys,
        *("--vm", "guest-cid=3,socket=/a,uds-path=/b,tx-buffer-size=65536,queue-size=1024,groups=g1+g2"),
        *("--vm", "guest_cid=4,socket=/c,forward-cid=1,forward-listen=9001+9002"),
    )
    assert [vm.guest_cid for vm in found.vms] == [3, 4]
    assert found.vms[1].forward_cid == 1
    assert found.vms[1].forward_listen == {9001, 9002}


def test_a_yaml_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "vsock.yaml"
    file.write_text(
        """
vms:
  - guest_cid: 3
    socket: /tmp/vhost3.socket
    uds_path: /tmp/vm3.sock
    tx_buffer_size: 65536
    queue_size: 1024
    groups: group1+groupA
  - guest-cid: 4
    socket: /tmp/vhost4.socket
    forward-cid: 1
    forward-listen: 9001+9002
stats: /tmp/stats.sock
"""
    )
    found = checked(capsys, f"--config={file}")
    assert found.vms[0].groups == {"group1", "groupA"}
    assert found.vms[1].forward_listen == {9001, 9002}
    assert found.stats == Path("/tmp/stats.sock")  # noqa: S108


@pytest.mark.parametrize("cid", ["0", "1", "2", "4294967295", "18446744073709551615", "x"])
def test_reserved_addresses_are_refused(capsys: pytest.CaptureFixture[str], cid: str) -> None:
    why = "must be a whole number" if cid == "x" else "0, 1, 2 and 4294967295 are reserved"
    for arguments in (["--socket=s", f"--guest-cid={cid}"], [f"--vm=socket=s,guest-cid={cid}"]):
        said = complaint(capsys, cli.EXIT_USAGE, *arguments)
        assert "guest-cid: must be" in said
        assert why in said


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--guest-cid=5"], "needs a socket"),
        ([], "--config"),
        (["--guest-cid=5", "--vm=guest-cid=6,socket=/s"], "or --vm"),
        (["--vm=guest-cid=6,sockets=/s"], "--vm 1 sockets: there is no such key, but socket"),
        (["--vm=guest-cid"], "not key=value"),
        (["--vm=guest-cid=4,guest_cid=5"], "given twice"),
        (["--socket=s", "--queue-size=100"], "power of two"),
        (["--socket=s", "--forward-listen=nine"], "--forward-listen: must be a whole number"),
        (["--socket=s", "--uds-path=u", "--forward-cid=1"], "excludes"),
        (["--socket=" + "s" * 108], "at most 107 bytes"),
        (["--vm=guest-cid=4,socket=/a", "--vm=guest-cid=4,socket=/b"], "guest_cid 4 is given 2 times"),
        (["--vm=guest-cid=4,socket=/a", "--vm=guest-cid=5,socket=/a"], "socket /a is given 2 times"),
        (["--socket=s", "--fd=3"], "--fd stands for"),
        (["--vm=guest-cid=4,socket=/a", "--fd=3"], "or --vm"),
        (["--socket=s", "--uds-path=s"], "socket and uds_path s is given 2 times"),
        (["--socket=s", "--stats=s"], "socket and stats s is given 2 times"),
        (["--socket=s", "--publish=unix:s=80"], "socket and publish s is given 2 times"),
        (["--socket="], "does not name a file"),
        (["--socket=s\udcff"], "must be UTF-8"),
        (["--socket=s", "--uds-path=" + "u" * 97], "ports appended has at most 96 bytes"),
        (["--socket=s", "--connections-max=0"], "--connections-max: must be at least 1"),
        (["--socket=s", "--half-open-max=0"], "--half-open-max: must be at least 1"),
        (["--socket=s", "--buffered-bytes-max=1"], "--buffered-bytes-max: must be at least 1048576"),
        (["--socket=s", "--allow-uid=-1"], "--allow-uid: must be at least 0"),
        (["--socket=s", "--proxy=1=a b:443"], "not HOST:PORT"),
        (["--socket=s", "--proxy=1=a..b:443"], "'a..b' is not a host name"),
        (["--socket=s", "--proxy=1=\udcff:443"], "is not a host name"),
        (["--socket=s", "--publish=tcp:a..b:80=80"], "'a..b' is not a host name"),
        (["--socket=s", "--publish=unix:/\udcff=80"], "must be UTF-8"),
        (["--socket=s", "--groups=a+\udcff"], "--groups: must be UTF-8"),
        (["--socket=s", "--host-cids=0"], "--host-cids: must be at least 2"),
        (["--socket=s", "--host-cids=4294967295"], "--host-cids: must be at most 4294967294"),
        (["--socket=s", "--guest-cid=5", "--host-cids=5"], "choose another"),
        (["--socket=s", "--publish=5000"], "neither tcp:HOST:PORT"),
        (["--socket=s", "--proxy=8000"], "not PORT=HOST:PORT"),
        (["--socket=s", "--proxy=1=a:1", "--proxy=1=b:1"], "a port twice"),
        (["--socket=s", "--forward-cid=1", "--heartbeat"], "forward_cid excludes heartbeat"),
        (["--socket=s", "--source-cid=4"], "source_cid 4 is not one of host_cids"),
        (["--vm=socket=s,host-cids=a"], "--vm 1 host-cids: must be a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    assert why in complaint(capsys, cli.EXIT_USAGE, *arguments)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "no mapping at its top"),
        ("vms: 3", "needs a list"),
        ("vms: [3]", "needs a list"),
        ("vms: []", "nobody to serve"),
        ("vms: [{guest_cid: 4}]", "guest 4 needs a socket"),
        ("vms: [{socket: /s, socket: /t}]", "the key socket is given twice"),
        ("vms: [{socket: /s, guest_cid: 4, guest-cid: 5}]", "the key guest-cid is given twice"),
        ("vms: [{socket: /s, proxy: 8000=a:1}]", "vms.0.proxy: must be a list"),
        ('vms: [{socket: "/a\\0b"}]', "zero byte"),
        ("vms: [{socket: /s, proxy: [{port: 1, targt: 2}]}]", "vms.0.proxy.0.targt: there is no such key\n"),
        ("vms: [{socket: /s, publish: [{listen: 5, port: 80}]}]", "listen.tcp: must be a mapping\n"),
        ("vms: [{socket: /s}]\nstat: /t", "stat: there is no such key, but stats\n"),
        ("vms: [{socket: /s}]\nproxy_allowlist: 3", "proxy_allowlist"),
        ('vms: !!int ""', "index out of range"),
        ('vms: !!bool "x"', "'x'"),
        ('vms: !!timestamp "x"', "group"),
        ("vms: [{socket: /s, guest_cid: 2}]", "vms.0.guest_cid"),
        ("vms: [{socket: /s, color: red}]", "vms.0.color"),
        ("vms: [{socket: /s}]\nextra: 1", "extra"),
        ("vms: [}", "while parsing"),
        ("\x00", "special characters"),
    ],
)
def test_a_bad_file_is_told_apart_from_bad_flags(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, why: str
) -> None:
    file = tmp_path / "vsock.yaml"
    file.write_text(content)
    said = complaint(capsys, cli.EXIT_BAD_FILE, f"--config={file}")
    assert str(file) in said
    assert why in said


def test_keys_may_be_merged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "vsock.yaml"
    file.write_text(
        """
vms:
  - &a {guest_cid: 4, socket: /a, connections_max: 10}
  - &b {<<: *a, guest_cid: 5, socket: /b}
  - {<<: *b, guest_cid: 6, socket: /c}
"""
    )
    assert [(vm.guest_cid, vm.connections_max) for vm in checked(capsys, f"--config={file}").vms] == [
        (4, 10),
        (5, 10),
        (6, 10),
    ]


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in complaint(capsys, cli.EXIT_BAD_FILE, "--config=/nowhere/vsock.yaml")


def test_published_ports_and_proxies(capsys: pytest.CaptureFixture[str]) -> None:
    vm = checked(
        capsys,
        *("--socket=s", "--publish=tcp:127.0.0.1:8080=80", "--publish=unix:/run/web.sock=81"),
        *("--proxy=8000=kms.example:443", "--proxy=8001=[::1]:53"),
    ).vms[0]
    assert vm.publish == (
        Published(listen=Endpoint(host="127.0.0.1", port=8080), port=80),
        Published(listen=Path("/run/web.sock"), port=81),
    )
    assert [str(proxied.target) for proxied in vm.proxy] == ["kms.example:443", "[::1]:53"]
    assert vm.proxy[0] == Proxied(port=8000, target=Destination(host="kms.example", port=443))


def test_the_allow_list_of_vsock_proxy(tmp_path: Path) -> None:
    file = tmp_path / "vsock-proxy.yaml"
    file.write_text(
        "allowlist:\n- {address: kms.us-east-1.amazonaws.com, port: 443}\n- {address: 127.0.0.1, port: 80}\n"
    )
    found = read_allowlist(file)
    assert [(entry.address, entry.port) for entry in found.allowlist] == [
        ("kms.us-east-1.amazonaws.com", 443),
        ("127.0.0.1", 80),
    ]


def test_capabilities_are_as_the_specification_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--print-capabilities"]) == cli.EXIT_OK
    assert json.loads(capsys.readouterr().out) == {"type": "vsock", "features": []}


def test_the_descriptor_names_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--print-descriptor"]) == cli.EXIT_OK
    printed = capsys.readouterr().out
    descriptor = json.loads(printed)
    assert printed == json.dumps(descriptor, indent=2) + "\n"
    assert descriptor["type"] == "vsock"
    assert Path(descriptor["binary"]).is_absolute()


def test_a_program_that_is_not_on_the_path_is_the_one_that_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "program")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "link"), "--print-descriptor"])

    assert cli.main(["--print-descriptor"]) == cli.EXIT_OK
    assert json.loads(capsys.readouterr().out)["binary"] == str(tmp_path / "program")


@pytest.mark.parametrize(
    "name",
    [
        *("guest-cid", "tx-buffer-size", "queue-size", "connections-max", "half-open-max"),
        *("buffered-bytes-max", "handshake-timeout-s", "connect-timeout-s", "close-timeout-s"),
        "linger-timeout-s",
    ],
)
def test_the_help_tells_the_default_that_holds(name: str) -> None:
    told = " ".join(parser().format_help().split())

    found = re.search(rf"--{name} [A-Z]+ .*?\(default: ([0-9]+)\)", told)

    assert found is not None
    assert int(found[1]) == getattr(VmConfig(), name.replace("-", "_"))


@pytest.mark.parametrize(("file", "suffix"), [("engine.py", ""), ("engine.so", " (compiled)")])
def test_the_version_says_whether_the_data_path_is_compiled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, file: str, suffix: str
) -> None:
    spec = importlib.machinery.ModuleSpec("engine", None, origin=f"/somewhere/{file}")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: spec)

    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])

    assert capsys.readouterr().out == f"vhost-user-vsock {version('nitro-vsock')}{suffix}\n"


def test_the_defaults_that_help_names_are_the_models() -> None:
    model = VmConfig()
    flags = {action.dest: action.help or "" for action in parser()._actions}

    named = {name: found[1] for name in SINGLE if (found := re.search(r"\(default: ([\d+]+)\)", flags[name]))}

    assert len(named) >= 9
    for name, text in named.items():
        default = getattr(model, name)
        if name == "source_cid":
            continue  # it is made of others
        if isinstance(default, frozenset):
            assert {int(part) for part in text.split("+")} == default, name
        else:
            assert float(text) == default, name


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    assert "example:" in capsys.readouterr().out


class TestCheck:
    """``--check`` finds all that the start would."""

    def test_proxies_that_the_allow_list_does_not_allow(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        file = tmp_path / "allowed.yaml"
        file.write_text("allowlist: [{address: kms.example, port: 443}]")

        said = complaint(
            capsys,
            cli.EXIT_USAGE,
            *("--socket=s", "--proxy=8000=other.example:443", f"--proxy-allowlist={file}"),
        )

        assert "other.example:443 is not in the allow-list" in said
        assert "  hint: add its address and port to the list" in said

    @pytest.mark.parametrize(
        "flag", ["--socket=/no/where/s", "--uds-path=/no/where/s", "--stats=/no/where/s"]
    )
    def test_folders_that_are_not_there(self, capsys: pytest.CaptureFixture[str], flag: str) -> None:
        arguments = [flag] if flag.startswith("--socket") else ["--socket=s", flag]

        said = complaint(capsys, cli.EXIT_HOST, *arguments)

        assert "there is no folder /no/where" in said

    def test_the_folder_of_a_published_socket(self, capsys: pytest.CaptureFixture[str]) -> None:
        said = complaint(capsys, cli.EXIT_HOST, "--socket=s", "--publish=unix:/no/where/s=80")

        assert "there is no folder /no/where" in said

    def test_a_name_without_an_address(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unknown(*_: object, **__: object) -> object:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)

        said = complaint(capsys, cli.EXIT_HOST, "--socket=s", "--publish=tcp:no.example:80=80")

        assert "cannot publish at no.example:80" in said

    @pytest.mark.parametrize("flag", ["--forward-cid=1", "--forward-listen=9"])
    def test_a_host_without_af_vsock(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flag: str
    ) -> None:
        def refuse() -> None:
            raise HostError("this host has no AF_VSOCK", hint="load a module")

        monkeypatch.setattr(af_vsock, "check_available", refuse)

        assert "no AF_VSOCK" in complaint(capsys, cli.EXIT_HOST, "--socket=s", flag)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("16", "'16' is a CID and not a host"),
        ("4294967295", "is a CID and not a host"),
        ("0x7f.1", "is not an IPv4 address"),
        ("1.2.3", "is not an IPv4 address"),
        ("1.2.3.400", "is not an IPv4 address"),
        ("host.5", "is not an IPv4 address"),
        ("0.0.0.0", "nobody can be connected to at 0.0.0.0"),  # noqa: S104 (refused)
        ("0.1.2.3", "nobody can be connected to"),
        ("255.255.255.255", "nobody can be connected to"),
        ("224.0.0.1", "nobody can be connected to"),
        ("[::]", "nobody can be connected to at ::"),
        ("[ff02::1]", "nobody can be connected to"),
        ("[::ffff:0.0.0.0]", "nobody can be connected to"),
    ],
)
def test_destinations_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], host: str, why: str
) -> None:
    assert why in complaint(capsys, cli.EXIT_USAGE, "--socket=s", f"--proxy=8000={host}:443")


@pytest.mark.parametrize("text", ["host.example", ":443", "host.example:", "host.example:http", "a host:443"])
def test_a_destination_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        Destination.parse(text)


@pytest.mark.parametrize("port", [0, 65536])
def test_destinations_have_a_tcp_port(capsys: pytest.CaptureFixture[str], port: int) -> None:
    said = complaint(capsys, cli.EXIT_USAGE, "--socket=s", f"--proxy=8000=host.example:{port}")

    assert "must be at" in said


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "[fe80::1%lo]", "10.0.0.1", "kms.example", "3com.example"]
)
def test_other_destinations_are_taken(capsys: pytest.CaptureFixture[str], host: str) -> None:
    vm = checked(capsys, "--socket=s", f"--proxy=8000={host}:443").vms[0]

    assert str(vm.proxy[0].target) == f"{host}:443"


def test_all_addresses_of_the_host_are_a_place_to_listen(capsys: pytest.CaptureFixture[str]) -> None:
    checked(capsys, "--socket=s", "--publish=tcp:0.0.0.0:8080=80", "--publish=tcp:*:8081=80")


@pytest.mark.parametrize(
    ("alone", "processors", "microseconds"), [(True, 2, 30), (True, 1, 0), (False, 2, 0)]
)
def test_only_a_guest_with_a_processor_to_spare_looks_before_it_sleeps(
    monkeypatch: pytest.MonkeyPatch, *, alone: bool, processors: int, microseconds: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))

    assert default_spin_us(alone=alone) == microseconds


@pytest.mark.parametrize(("chosen", "microseconds"), [(None, 30), (0, 0), (50, 50)])
def test_what_was_chosen_goes_before_what_the_daemon_would_choose(
    chosen: int | None, microseconds: int
) -> None:
    vm = VmConfig(guest_cid=3, spin_us=chosen)

    assert vm.engine(allow_uid=frozenset(), spin_us=30).spin_us == microseconds


def test_a_forwarding_guest_finds_the_host_at_every_cid() -> None:
    vm = VmConfig(guest_cid=16, forward_cid=77, allow_uid=frozenset({1}))

    engine = vm.engine(allow_uid=frozenset({2}), spin_us=0)

    assert engine.any_cid
    assert engine.host_cids == {2, 3, 77}
    assert engine.allow_uid == {1, 2}


def test_there_is_a_flag_for_each_setting_of_a_guest() -> None:
    assert set(SINGLE) == set(VmConfig.model_fields) - {"allow_uid"}
