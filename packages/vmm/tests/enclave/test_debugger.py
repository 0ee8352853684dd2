"""GDB's port of an enclave, by a client that speaks the protocol itself; the guest runs on Unicorn."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nitro_vmm import Enclave, EnclaveConfig, HostError, Outcome, UsageError
from nitro_vmm.accel import Exit, ExitReason
from nitro_vmm.gdb.packets import Decoder, Packet, encode
from nitro_vmm.gdb.registers import REGISTERS
from nitro_vmm.testing import KERNEL_ENTRY, FakeAccelerator

PATIENCE_S = 120
RIP = b"%x" % next(number for number, register in enumerate(REGISTERS) if register.name == "rip")
SPIN = KERNEL_ENTRY + 10
"""Where the fixture's image begins to compute for ever, after it has printed two letters."""


class Client:
    """A GDB that a test plays."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._decoder = Decoder()
        self._packets: list[bytes] = []

    async def send(self, payload: bytes) -> None:
        await self.stream.send_all(encode(payload))

    async def receive(self) -> bytes:
        while not self._packets:
            data = await self.stream.receive_some()
            assert data, "the connection ended"
            self._packets += [one.payload for one in self._decoder.feed(data) if isinstance(one, Packet)]
        return self._packets.pop(0)

    async def ask(self, payload: bytes) -> bytes:
        await self.send(payload)
        return await self.receive()

    async def rip(self) -> int:
        return int.from_bytes(bytes.fromhex((await self.ask(b"p" + RIP)).decode()), "little")


def config(image: Path, **options: object) -> EnclaveConfig:
    return EnclaveConfig.model_validate({"eif_path": image, "accelerator": "unicorn", "gdb": 0, **options})


@asynccontextmanager
async def debugged(image: Path, **options: object) -> AsyncIterator[tuple[Enclave, Client]]:
    with trio.fail_after(PATIENCE_S):
        async with Enclave(config(image, **options)) as enclave:
            assert enclave.gdb is not None
            async with await trio.open_tcp_stream(enclave.gdb.host, enclave.gdb.port) as stream:
                yield enclave, Client(stream)


async def test_the_guest_waits_at_its_entry_and_goes_on_when_told(spinning_image: Path) -> None:
    async with debugged(spinning_image) as (enclave, gdb):
        assert await gdb.rip() == KERNEL_ENTRY
        assert enclave.console.read(0) == (0, b"")

        await gdb.send(b"c")

        async for output in enclave.console.stream():
            assert b"hi".startswith(output)
            break


async def test_breakpoint_memory_step_and_ctrl_c(spinning_image: Path) -> None:
    async with debugged(spinning_image) as (enclave, gdb):
        assert await gdb.ask(b"m%x,2" % SPIN) == b"ebfe"
        assert await gdb.ask(b"Z1,%x,1" % SPIN) == b"OK"
        assert await gdb.ask(b"c") == b"T05hwbreak:;thread:1;"
        assert await gdb.rip() == SPIN
        assert enclave.console.read(0)[1] == b"hi"

        assert await gdb.ask(b"z1,%x,1" % SPIN) == b"OK"
        assert await gdb.ask(b"M%x,2:9090" % SPIN) == b"OK"  # nop; nop
        assert await gdb.ask(b"s") == b"T05thread:1;"
        assert await gdb.rip() == SPIN + 1

        assert await gdb.ask(b"M%x,2:ebfe" % (SPIN + 1)) == b"OK"
        await gdb.send(b"c")
        await gdb.stream.send_all(b"\x03")
        assert await gdb.receive() == b"T02thread:1;"
        assert await gdb.rip() == SPIN + 1


@pytest.mark.parametrize("way", [b"D", b""])
async def test_when_gdb_goes_the_guest_goes_on_without_breakpoints(spinning_image: Path, way: bytes) -> None:
    async with debugged(spinning_image) as (enclave, gdb):
        await gdb.ask(b"Z1,%x,1" % (KERNEL_ENTRY + 4))
        if way:
            assert await gdb.ask(way) == b"OK"
        await gdb.stream.aclose()

        seen = b""
        async for output in enclave.console.stream():
            seen += output
            if seen == b"hi":
                break


async def test_another_gdb_may_come_and_finds_the_guest_still(spinning_image: Path) -> None:
    async with debugged(spinning_image) as (enclave, gdb):
        await gdb.send(b"c")
        await gdb.stream.aclose()
        assert enclave.gdb is not None
        async with await trio.open_tcp_stream(enclave.gdb.host, enclave.gdb.port) as stream:
            again = Client(stream)

            assert (await again.ask(b"?")).startswith(b"T05")
            assert await again.rip() in range(KERNEL_ENTRY, SPIN + 3)


async def test_gdb_ends_the_enclave(spinning_image: Path) -> None:
    async with debugged(spinning_image) as (enclave, gdb):
        await gdb.send(b"k")

        result = await enclave.wait()

    assert (result.outcome, result.reason) == (Outcome.STOPPED, "ended by GDB")


async def test_an_enclave_that_waits_for_gdb_can_be_ended(spinning_image: Path) -> None:
    async with debugged(spinning_image) as (enclave, _):
        result = await enclave.stop()

    assert result.outcome is Outcome.STOPPED


async def test_the_boot_time_out_counts_while_the_guest_runs(spinning_image: Path) -> None:
    async with debugged(spinning_image, boot_timeout_s=0.2) as (enclave, gdb):
        with trio.move_on_after(0.5) as waited:
            await enclave.wait()
        assert waited.cancelled_caught, "it ended although it had not begun"

        await gdb.send(b"c")
        result = await enclave.wait()

    assert result.outcome is Outcome.BOOT_TIMEOUT


async def test_nonsense_on_the_port_hurts_nobody(spinning_image: Path) -> None:
    async with debugged(spinning_image) as (_, gdb):
        await gdb.stream.send_all(b"GET / HTTP/1.1\r\n\r\n$xx#00\x03\x03$m0,#9")
        await gdb.stream.send_all(b"$c#00" * 100)

        assert await gdb.ask(b"m%x,1" % SPIN) == b"eb"


async def test_an_address_that_is_taken(spinning_image: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(HostError) as caught:
        async with Enclave(config(spinning_image, gdb=taken.getsockname()[1])):
            pass

    assert (caught.value.code, "port 0" in caught.value.hint) == ("M33", True)


async def test_a_processor_that_cannot_be_debugged(image: Path) -> None:
    accelerator = FakeAccelerator(lambda _: Exit(ExitReason.HALTED))

    with pytest.raises(UsageError) as caught:
        async with Enclave(config(image), accelerator=accelerator):
            pass

    assert (caught.value.code, caught.value.hint) == ("M34", "--accel unicorn")


async def test_other_addresses_than_this_machines_own_are_warned_of(spinning_image: Path) -> None:
    said: list[str] = []

    async with Enclave(config(spinning_image, gdb="0.0.0.0:0"), say=said.append):
        pass

    assert any(line.startswith("warning: whoever reaches 0.0.0.0:") for line in said)
