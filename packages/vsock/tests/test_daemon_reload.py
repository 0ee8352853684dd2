"""SIGHUP: what changes in a running daemon, what does not, and that connections stay."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from nitro_vsock.daemon.config import DaemonConfig
from nitro_vsock.daemon.notify import Notifier
from nitro_vsock.daemon.reload import merged
from nitro_vsock.daemon.service import Reloader
from nitro_vsock.device.packet import Op
from nitro_vsock.errors import UsageError
from vhost_user_guest import PATIENCE_S, Guest, accept, listen, patient


def config(*vms: Mapping[str, object], **options: object) -> DaemonConfig:
    return DaemonConfig.model_validate({"vms": vms, **options})


RUNNING = config({"guest_cid": 4, "proxy": ["1=a:1"]}, {"guest_cid": 5})


class TestMerged:
    def test_proxies_published_ports_and_the_allow_list_change(self) -> None:
        wanted = config(
            {"guest_cid": 5, "publish": ["unix:/p=80"], "forward_listen": [7]},
            {"guest_cid": 4, "proxy": ["1=b:1"]},
            proxy_allowlist={"allowlist": [{"address": "b", "port": 1}]},
        )

        found, left = merged(RUNNING, wanted)

        assert left == []
        assert [vm.guest_cid for vm in found.vms] == [4, 5], "in the order of those that run"
        assert str(found.vms[0].proxy[0].target) == "b:1"
        assert found.vms[1].publish == wanted.vms[0].publish
        assert found.vms[1].forward_listen == {7}
        assert found.proxy_allowlist == wanted.proxy_allowlist

    @pytest.mark.parametrize(
        ("wanted", "what"),
        [
            (config({"guest_cid": 4, "proxy": ["1=a:1"]}), ["guest 5 is gone"]),
            (config(*RUNNING.model_dump()["vms"], {"guest_cid": 6}), ["guest 6 is new"]),
            (config({"guest_cid": 4, "seqpacket": True}, {"guest_cid": 5}), ["guest 4: seqpacket"]),
            (config({"guest_cid": 4}, {"guest_cid": 5}, stats="/s", allow_uid=[1]), ["stats", "allow_uid"]),
        ],
    )
    def test_what_needs_a_restart_is_told_and_left_as_it_is(
        self, wanted: DaemonConfig, what: list[str]
    ) -> None:
        found, left = merged(RUNNING, wanted)

        assert left == what
        assert [vm.guest_cid for vm in found.vms] == [4, 5]
        assert not any(vm.seqpacket for vm in found.vms)
        assert found.stats is None
        assert found.allow_uid == set()


class TestReloader:
    async def test_a_configuration_that_cannot_be_used_changes_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        changes: list[DaemonConfig] = []

        def read() -> DaemonConfig:
            raise UsageError("a:1 is not in the allow-list of the proxy")

        async def change(new: DaemonConfig) -> None:
            changes.append(new)

        await Reloader(RUNNING, read, change, Notifier({})).reload()

        assert changes == []
        assert "the configuration is not changed" in caplog.text

    async def test_what_changed_once_is_what_runs(self, caplog: pytest.LogCaptureFixture) -> None:
        changes: list[DaemonConfig] = []
        wanted = [config({"guest_cid": 4}, {"guest_cid": 5}), config({"guest_cid": 4}, {"guest_cid": 6})]
        again = iter(wanted)

        async def change(new: DaemonConfig) -> None:
            changes.append(new)

        reloader = Reloader(RUNNING, lambda: next(again), change, Notifier({}))
        await reloader.reload()
        await reloader.reload()

        assert changes == [wanted[0], wanted[0]], "the second one needs a restart"
        assert "needs a restart" in caplog.text


@dataclass
class Daemon:
    """A daemon with a configuration file, and the guests in it."""

    directory: Path
    process: subprocess.Popen[bytes]
    notify: socket.socket

    def reload(self) -> str:
        """Have it read its file again; what it says then."""
        self.process.send_signal(signal.SIGHUP)
        assert self.notify.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        said = self.notify.recv(1000)
        assert said.startswith(b"READY=1\n")
        return said.decode()


def write(directory: Path, groups: tuple[str, str], **options: object) -> None:
    """Write a configuration of guests 4 and 5, with options for the first one."""
    vms = [
        {"guest_cid": cid, "socket": f"{directory}/vhost{cid}", "uds_path": f"{directory}/vsock{cid}"}
        | {"groups": group}
        | (options if cid == 4 else {})
        for cid, group in zip((4, 5), groups, strict=True)
    ]
    (directory / "config.yaml").write_text(repr({"vms": vms}).replace("'", '"'))


@contextlib.contextmanager
def started(directory: Path, groups: tuple[str, str]) -> Iterator[Daemon]:
    write(directory, groups)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.settimeout(PATIENCE_S)
        notify.bind(str(directory / "notify"))
        process = subprocess.Popen(
            [sys.executable, "-m", "nitro_vsock.cli", f"--config={directory}/config.yaml"],
            env={**os.environ, "NOTIFY_SOCKET": str(directory / "notify")},
            stderr=subprocess.DEVNULL,
        )
        try:
            assert notify.recv(1000) == b"READY=1\nSTATUS=serving guests 4, 5"
            yield Daemon(directory, process, notify)
            process.terminate()
            assert notify.recv(1000) == b"STOPPING=1"
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("groups", [("a", "a"), ("a", "b")], ids=["one process", "a process each"])
def test_a_reload_changes_ports_and_keeps_connections(groups: tuple[str, str], tmp_path: Path) -> None:
    with (
        started(tmp_path, groups) as daemon,
        listen(tmp_path / "vsock4_5000") as listener,
        socket.create_server(("127.0.0.1", 0)) as endpoint,
        Guest(tmp_path / "vhost4", cid=4) as guest,
    ):
        endpoint.settimeout(PATIENCE_S)
        guest.connect(1000, 5000)
        with accept(listener) as old:
            port = endpoint.getsockname()[1]
            write(tmp_path, groups, publish=[f"unix:{tmp_path}/web=80"], proxy=[f"8000=127.0.0.1:{port}"])
            daemon.reload()

            guest.connect(1001, 8000)
            accept(endpoint).close()
            guest.expect(Op.SHUTDOWN)
            guest.send(Op.RST, 1001, 8000)
            with socket.socket(socket.AF_UNIX) as visitor:
                patient(visitor).connect(f"{tmp_path}/web")
                visitor.sendall(b"hello")
                published = guest.accept(port=80)
                assert guest.read(5) == b"hello"

                write(tmp_path, groups)
                daemon.reload()

                assert not (tmp_path / "web").exists()
                guest.send(Op.RW, 80, published.src_port, b"still here")
                assert visitor.recv(10, socket.MSG_WAITALL) == b"still here"
            guest.expect(Op.SHUTDOWN)
            guest.send(Op.RW, 1000, 5000, b"and here")
            assert old.recv(8, socket.MSG_WAITALL) == b"and here"
            guest.send(Op.REQUEST, 1002, 8000)
            assert guest.expect(Op.RST).src_port == 8000


def test_a_broken_file_is_reported_and_ignored(tmp_path: Path) -> None:
    with started(tmp_path, ("a", "b")) as daemon:
        (tmp_path / "config.yaml").write_text("vms: [}")

        assert "was not changed" in daemon.reload()

        write(tmp_path, ("a", "b"))
        assert "serving guests 4, 5" in daemon.reload()
