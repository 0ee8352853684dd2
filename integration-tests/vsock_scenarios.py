"""Everything that programs do with vsock, both ways: one list for every machine and every vsock device."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vsock_machines import (
    Guest,
    Machine,
    daemon,
    describe,
    drain,
    echoing,
    guest,
    pattern,
)

CID = 16
MIB = 1 << 20
ABSENT = 5999


class Scenarios:
    """What any vsock device does for the guest of the fixture `vm`."""

    bulk = 256 * MIB
    """Bytes moved each way in one connection."""

    def test_the_guest_knows_its_address(self, vm: Guest) -> None:
        assert vm.do("cid") == f"ok {CID}"

    @pytest.mark.parametrize("host_cid", [2, 3])
    def test_a_guest_reaches_the_host(self, vm: Guest, host_cid: int) -> None:
        port = 5000 + host_cid
        with echoing(vm.listen(port)):
            assert vm.do("many", host_cid, port, 3).startswith("ok 3 of 3")

    def test_the_host_reaches_a_guest(self, vm: Guest) -> None:
        assert vm.do("echo", 7000).startswith("ok")
        with vm.connect(7000) as connection:
            connection.sendall(b"hello")
            assert connection.recv(5, socket.MSG_WAITALL) == b"hello"
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""

    @pytest.mark.parametrize("destination", [(2, ABSENT), (3, ABSENT), (77, 1)])
    def test_a_port_without_listener_is_refused_at_once(
        self, vm: Guest, destination: tuple[int, int]
    ) -> None:
        answer = vm.do("connect", *destination)
        assert answer.startswith("ECONNRESET")  # one that nobody answers is ETIMEDOUT

    def test_a_guest_port_without_listener_is_refused(self, vm: Guest) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(vm.uds_path))
            connection.sendall(b"CONNECT 7999\n")
            assert connection.recv(1) == b""

    @pytest.mark.parametrize("chunk", [1000, 4096, 65536, MIB])
    def test_guest_writes_of_any_size_arrive_and_a_half_close_leaves_the_answer_open(
        self, vm: Guest, chunk: int
    ) -> None:
        with vm.listen(5100) as listener:
            vm.order("send", 2, 5100, 4 * MIB, chunk)
            connection, _ = listener.accept()
            with connection:
                connection.sendall(drain(connection).encode())
        (vm.uds_path.parent / f"{vm.uds_path.name}_5100").unlink()
        assert vm.answer().startswith("ok")

    def test_a_half_close_by_the_host_leaves_the_answer_open(self, vm: Guest) -> None:
        vm.do("sink", 7100)
        data = pattern(MIB)
        with vm.connect(7100) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(64, socket.MSG_WAITALL).decode() == describe(data)

    def test_a_guest_may_write_after_the_host_has_ended(self, vm: Guest) -> None:
        with vm.listen(5101) as listener:
            vm.order("read-then-write", 2, 5101)
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"12345")
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(64, socket.MSG_WAITALL) == b"after the end"
        assert vm.answer() == "ok 5"

    def test_a_thousand_connections_at_a_time(self, vm: Guest) -> None:
        with echoing(vm.listen(5102)):
            assert vm.do("many", 2, 5102, 1000).startswith("ok 1000 of 1000")

    def test_a_thousand_connections_one_after_the_other(self, vm: Guest) -> None:
        with echoing(vm.listen(5103)):
            assert vm.do("sequence", 2, 5103, 1000).startswith("ok 1000 of 1000")

    def test_a_thousand_connections_from_the_host(self, vm: Guest) -> None:
        vm.do("echo", 7200)

        def one(number: int) -> bool:
            with vm.connect(7200) as connection:
                word = f"connection {number}".encode()
                connection.sendall(word)
                return connection.recv(len(word), socket.MSG_WAITALL) == word

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(one, range(1000)))

    def test_bulk_from_the_guest(self, vm: Guest) -> None:
        with vm.listen(5104) as listener:
            vm.order("send", 2, 5104, self.bulk, 65536)
            connection, _ = listener.accept()
            with connection:
                told = drain(connection)
                connection.sendall(told.encode())
        assert vm.answer().startswith("ok")
        assert told.endswith(f" {self.bulk}")

    def test_bulk_to_the_guest(self, vm: Guest) -> None:
        vm.do("sink", 7300)
        data = pattern(MIB)
        with vm.connect(7300) as connection:
            for _ in range(self.bulk // MIB):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(64, socket.MSG_WAITALL).decode() == describe(data, self.bulk // MIB)

    def test_messages_keep_their_boundaries(self, vm: Guest) -> None:
        with vm.listen(5105, kind=socket.SOCK_SEQPACKET) as listener:
            vm.order("packets", 2, 5105, 100)
            connection, _ = listener.accept()
            with connection:
                lengths = []
                while packet := connection.recv(65536):
                    lengths.append(len(packet))
                    connection.send(packet)
        assert lengths == [1 + number % 500 for number in range(100)]
        assert vm.answer() == "ok 100 of 100"

    def test_messages_from_the_host(self, vm: Guest) -> None:
        vm.do("echo-packets", 7400)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(f"{vm.uds_path}.seqpacket")
            connection.send(b"CONNECT 7400\n")
            assert connection.recv(100).startswith(b"OK ")
            for length in (1, 5000, 60000):
                connection.send(bytes(length))
                assert connection.recv(1 << 20) == bytes(length)


class DaemonScenarios(Scenarios):
    """What the daemon does besides, for guests of the fixture `machine`."""

    def test_a_guest_that_is_powered_off_ends_its_connections(self, machine: Machine, tmp_path: Path) -> None:
        """And the daemon serves the next one on the same sockets, with nothing left of the first."""
        with daemon(tmp_path, CID) as process:
            descriptors = []
            for _ in range(3):
                with guest(machine, tmp_path, CID) as vm:
                    vm.do("echo", 7000)
                    descriptors.append(len(list(Path(f"/proc/{process.pid}/fd").iterdir())))
                    with vm.connect(7000) as connection:
                        vm.process.kill()
                        assert connection.recv(1) == b""
            assert descriptors[0] == descriptors[-1]

    def test_two_guests_reach_each_other(self, machine: Machine, tmp_path: Path) -> None:
        with (
            daemon(tmp_path, CID, CID + 1),
            guest(machine, tmp_path, CID) as one,
            guest(machine, tmp_path, CID + 1) as other,
        ):
            other.do("echo", 7000)
            other.do("sink", 7001)
            assert one.do("many", CID + 1, 7000, 20).startswith("ok 20 of 20")
            assert one.do("send", CID + 1, 7001, 32 * MIB, 65536).startswith("ok")
            one.do("sink", 7001)
            assert other.do("send", CID, 7001, 4 * MIB, 65536).startswith("ok")
            assert one.do("connect", CID + 1, ABSENT).startswith("ECONNRESET")
