"""Our own machine: vsock in its process, and on the daemon, which may die and come back."""

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("nitro_vmm.cli", reason="there is no `vmm run`; install nitro-vmm")

import images
from vsock_machines import CONTROL_PORT, Guest, Vmm, daemon, echoing, guest, vmm_image
from vsock_scenarios import CID, DaemonScenarios, Scenarios

REPLY_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def image() -> Path:
    return vmm_image()


@pytest.fixture(scope="class")
def machine(request: pytest.FixtureRequest, image: Path) -> Vmm:
    return Vmm(image, on_daemon=issubclass(request.cls, DaemonScenarios))


@pytest.fixture(scope="class")
def vm(machine: Vmm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    directory = tmp_path_factory.mktemp("vm")
    host = daemon(directory, CID) if machine.on_daemon else contextlib.nullcontext()
    with host, guest(machine, directory, CID) as running:
        yield running


class TestInProcess(Scenarios):
    """``--vsock-path``."""


class TestOnDaemon(DaemonScenarios):
    """``--vsock vhost-user:PATH``."""

    def test_a_daemon_that_dies_and_comes_back(self, machine: Vmm, tmp_path: Path) -> None:
        with daemon(tmp_path, CID) as first, guest(machine, tmp_path, CID) as vm:
            vm.do("echo", 7000)
            with vm.connect(7000) as connection:
                first.kill()
                assert connection.recv(1) == b""
            first.wait()
            vm.close()
            with daemon(tmp_path, CID):
                vm.wait()
                assert f"vmm: vsock: the back-end at {tmp_path}/vhost{CID} is gone" in vm.log()
                assert f"vmm: vsock: the back-end at {tmp_path}/vhost{CID} is back\n" in vm.log()
                with vm.connect(7000) as connection:
                    connection.sendall(b"hello")
                    assert connection.recv(5) == b"hello"
                with echoing(vm.listen(5000)):
                    assert vm.do("many", 2, 5000, 20).startswith("ok 20 of 20")


def test_an_enclave_reaches_vsock_proxy_as_on_ec2(image: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(REPLY_TIMEOUT_S)
        port = server.getsockname()[1]
        (tmp_path / "allowed.yaml").write_text(f"allowlist: [{{address: 127.0.0.1, port: {port}}}]\n")
        proxy = [images.command("vsock-proxy"), str(CONTROL_PORT), "127.0.0.1", str(port)]
        enclave = images.launch(image, "--memory-mib", "256")
        with (
            subprocess.Popen([*proxy, "--config", tmp_path / "allowed.yaml"], env=environment) as proxying,
            subprocess.Popen(
                enclave, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            ) as running,
        ):
            try:
                agent, _ = server.accept()
                with agent:
                    agent.settimeout(REPLY_TIMEOUT_S)
                    agent.sendall(b"nonsense\n")
                    answer = agent.recv(100)
            finally:
                running.terminate()
                proxying.terminate()

    assert answer.startswith(b"unknown"), answer


def test_the_daemon_tells_the_machine_of_the_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    try:
        image = images.hello("nitro")
    except images.ImageError as error:
        pytest.skip(str(error))
    stats = tmp_path / "stats"
    command = images.launch(image, "--json", "--vsock-stats", str(stats))
    command += ["--vsock", f"vhost-user:{tmp_path}/vhost{CID}"]

    with daemon(tmp_path, CID, options=("--stats", str(stats))):
        without = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    vm = f"--vm=guest-cid={CID + 1},socket={tmp_path}/vhost{CID + 1},heartbeat=true"
    command[-1] = f"vhost-user:{tmp_path}/vhost{CID + 1}"
    with daemon(tmp_path, CID, options=("--stats", str(stats), vm)):
        done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)

    assert without.returncode == 4
    assert f"does not answer the heartbeat of its guest {CID}".encode() in without.stderr
    report = json.loads(done.stdout)
    assert report["HeartbeatSeconds"] < report["Seconds"]
    assert report["EnclaveCID"] == CID + 1
