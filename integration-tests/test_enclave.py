"""Enclaves of a real kernel in a trio program: connections both ways, several at once, pauses."""

from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("nitro_vmm.cli", reason="there is no `vmm run`; install nitro-vmm")

import trio

import images
from nitro_vmm import Enclave, EnclaveConfig, EnclaveEndedError, Outcome
from nitro_vmm.enclave.timeline import FROM_ENCLAVE, TO_ENCLAVE
from vsock_machines import CONTROL_PORT, vmm_image

pytestmark = pytest.mark.slow

ECHO_PORT = 7000
PATIENCE_S = 120


@pytest.fixture(scope="module")
def agent_image() -> Path:
    """An enclave that connects to its parent, takes orders there, and sends no heartbeat."""
    return vmm_image()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


class Agent:
    """The enclave's agent at the other end of its connection to the parent."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def order(self, order: str) -> None:
        await self._stream.send_all(f"{order}\n".encode())

    async def answer(self) -> str:
        answer = b""
        while not answer.endswith(b"\n"):
            piece = await self._stream.receive_some()
            assert piece, f"the connection ended in {answer!r}"
            answer += piece
        return answer.decode().strip()

    async def do(self, order: str) -> str:
        await self.order(order)
        return await self.answer()


def enclave(image: Path, cid: int) -> Enclave:
    return Enclave(EnclaveConfig(eif_path=image, cid=cid, memory_mib=128, boot_timeout_s=3600))


@pytest.mark.usefixtures("home")
async def test_two_enclaves_in_one_loop_are_reached_both_ways(agent_image: Path) -> None:
    echoes: dict[int, bytes] = {}

    async def run(cid: int) -> None:
        vm = enclave(agent_image, cid)
        with vm.listen(CONTROL_PORT) as listener:
            async with vm, await listener.accept() as stream:
                agent = Agent(stream)
                assert await agent.do("cid") == f"ok {cid}"
                assert (await agent.do(f"echo {ECHO_PORT}")).startswith("ok")
                async with await vm.connect(ECHO_PORT) as connection:
                    await connection.send_all(f"hello {cid}".encode())
                    echoes[cid] = bytes(await connection.receive_some())
                with pytest.raises(ConnectionRefusedError):
                    await vm.connect(ECHO_PORT + 1)
        assert vm.timeline.has(FROM_ENCLAVE)
        assert vm.timeline.has(TO_ENCLAVE)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, 20)
            nursery.start_soon(run, 21)

    assert echoes == {20: b"hello 20", 21: b"hello 21"}


@pytest.mark.usefixtures("home")
async def test_a_paused_enclave_answers_when_it_is_resumed(agent_image: Path) -> None:
    vm = enclave(agent_image, 20)
    with trio.fail_after(PATIENCE_S), vm.listen(CONTROL_PORT) as listener:
        async with vm, await listener.accept() as stream:
            agent = Agent(stream)
            await agent.do("cid")
            answers = []
            for _ in range(20):
                await vm.pause()
                await agent.order("cid")
                with trio.move_on_after(0.01) as waiting:
                    await agent.answer()
                assert waiting.cancelled_caught, "a guest that stands still has answered"
                vm.resume()
                answers.append(await agent.answer())

    assert answers == ["ok 20"] * 20


@pytest.mark.usefixtures("home")
async def test_the_heartbeat_and_the_console(agent_image: Path) -> None:
    try:
        image = images.hello("nitro")
    except images.ERRORS as error:
        pytest.skip(str(error))

    with trio.fail_after(PATIENCE_S):
        async with Enclave(EnclaveConfig(eif_path=image)) as vm:
            heartbeat_s = await vm.booted()
            result = await vm.wait()
            printed = b"".join([piece async for piece in vm.console.stream()])

    assert result.heartbeat_s == heartbeat_s
    assert result.outcome is Outcome.ENDED
    assert b"the application exited with 0" in printed


@pytest.mark.usefixtures("home")
async def test_an_enclave_that_never_sends_a_heartbeat(agent_image: Path) -> None:
    with trio.fail_after(PATIENCE_S):
        async with enclave(agent_image, 20) as vm:
            vm.terminate("enough")
            with pytest.raises(EnclaveEndedError, match="enough"):
                await vm.booted()


@pytest.mark.usefixtures("home")
async def test_published_and_proxied_ports(agent_image: Path) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            async for piece in stream:
                await stream.send_all(piece)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            (server, *_) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
            config = EnclaveConfig.model_validate(
                {
                    "eif_path": agent_image,
                    "memory_mib": 128,
                    "publish": [f"0:{ECHO_PORT}"],
                    "proxy": [f"8000=127.0.0.1:{server.socket.getsockname()[1]}"],
                }
            )
            vm = Enclave(config)
            with vm.listen(CONTROL_PORT) as listener:
                async with vm, await listener.accept() as stream:
                    agent = Agent(stream)
                    assert (await agent.do(f"echo {ECHO_PORT}")).startswith("ok")
                    ((endpoint, _),) = vm.published
                    assert not isinstance(endpoint, Path)
                    async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as client:
                        await client.send_all(b"published")
                        published = bytes(await client.receive_some())
                    proxied = await agent.do("sequence 3 8000 2")
            nursery.cancel_scope.cancel()

    assert published == b"published"
    assert proxied.startswith("ok 2 of 2")
