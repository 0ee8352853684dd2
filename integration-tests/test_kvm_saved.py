"""A machine on KVM with a real kernel is saved in the middle of its boot, and goes on in another one."""

import select
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

import images
from kvm_host import require_kvm
from nitro_vmm import EnclaveConfig
from nitro_vmm.accel import EntryState
from nitro_vmm.accel.kvm import Kvm
from nitro_vmm.address_map import MIB
from nitro_vmm.devices.vsock import VsockDevice
from nitro_vmm.enclave.assembly import Assembly, Reach, assemble
from nitro_vmm.enclave.boot import Surroundings
from nitro_vmm.enclave.timeline import Timeline
from nitro_vmm.machine.machine import End, Ending, MachineState
from nitro_vsock import SocketType

pytestmark = pytest.mark.slow

PATIENCE_S = 300
TURN_S = 0.1
MEMORY_MIB = 128


@pytest.fixture(scope="module")
def image() -> Path:
    require_kvm()
    try:
        return images.hello("nitro")
    except images.ERRORS as error:
        pytest.skip(str(error))


class Nobody:
    """The host's side of vsock: nothing but the heartbeat's service is there."""

    def connect(self, port: int, socket_type: SocketType) -> socket.socket:
        raise FileNotFoundError(port, socket_type)


class Launch:
    """An enclave's machine, what moves its vsock, and what it has printed."""

    def __init__(self, image: Path, resources: ExitStack, processors: int) -> None:
        self.printed = bytearray()
        self.heartbeats = 0
        self._more = threading.Condition()
        self._ending: Ending | None = None
        config = EnclaveConfig(
            eif_path=image,
            memory_mib=MEMORY_MIB,
            processors=processors,
            cid=16,
            cmdline_append="loglevel=7",
        )
        self._assembly: Assembly = assemble(
            config,
            Kvm(),
            resources,
            Surroundings(
                console=self._print,
                console_ready=lambda: None,
                say=lambda _text: None,
                timeline=Timeline(lambda: 0.0),
            ),
            Reach(Nobody(), {9000: self._heartbeat}),
        )

    def _print(self, data: bytes) -> None:
        with self._more:
            self.printed += data
            self._more.notify_all()

    def _heartbeat(self, sock: socket.socket) -> None:
        def answer() -> None:
            with sock:
                sock.setblocking(True)
                sock.sendall(sock.recv(1))
                self.heartbeats += 1

        threading.Thread(target=answer).start()

    @property
    def memory(self) -> memoryview:
        vsock = self._assembly.vsock
        assert isinstance(vsock, VsockDevice)
        return vsock._memory.slice(0, MEMORY_MIB * MIB)  # noqa: SLF001 - all devices share it, and so do we

    def start(self, saved: MachineState | None = None) -> None:
        if saved is not None:
            self._assembly.machine.restore(saved)
        entry = self._assembly.begun.entry if saved is None else None
        self._threads = [
            threading.Thread(target=self._run, args=(entry,)),
            threading.Thread(target=self._turn),
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, entry: EntryState | None) -> None:
        ending = self._assembly.machine.run(entry)
        with self._more:
            self._ending = ending
            self._more.notify_all()

    def _turn(self) -> None:
        vsock = self._assembly.vsock
        while self._ending is None:
            delay_s = vsock.turn()
            select.select([vsock.fileno()], [], [], TURN_S if delay_s is None else min(delay_s, TURN_S))

    def wait_for(self, mark: bytes) -> None:
        with self._more:
            found = self._more.wait_for(lambda: mark in self.printed or self._ending, PATIENCE_S)
        assert found, self.printed.decode()

    def save(self) -> MachineState:
        assert self._assembly.machine.pause(), self.printed.decode()
        return self._assembly.machine.state()

    def stop(self) -> None:
        self._assembly.machine.stop()
        self.join()

    def join(self) -> Ending:
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert self._ending is not None, self.printed.decode()
        return self._ending


@pytest.mark.parametrize(
    ("processors", "mark"),
    [(1, b"clocksource: Switched to"), (2, b"Run /init")],
)
def test_a_saved_kernel_goes_on_in_another_machine(image: Path, processors: int, mark: bytes) -> None:
    with ExitStack() as resources:
        first = Launch(image, resources, processors)
        first.start()
        first.wait_for(mark)
        state = first.save()
        second = Launch(image, resources, processors)
        second.memory[:] = first.memory
        first.stop()

        second.start(state)
        ending = second.join()

    assert ending == Ending(End.REBOOT)
    assert second.heartbeats == 1
    assert b"Linux version" not in second.printed
    assert b"the application exited with 0" in second.printed
    assert b"Call Trace" not in second.printed
