"""Count what enclaves on KVM cost: ``python tools/bench_kvm.py``; on any host ``python tools/kvm.py ...``.

It boots the hello image some times, and one that echoes what it gets over vsock, in this process. What counts
is how often the guest had to be left, and for what, because that is what a virtual machine waits for. The
echo is measured twice: once with each kick of a queue carried through this program, and then as it is, with
kicks that the kernel passes on. It says as well how much memory of the host an enclave holds.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import trio

import images
from debian import say
from nitro_vmm import Enclave, EnclaveConfig, HostError, Outcome
from nitro_vmm.accel import Bus, Ram
from nitro_vmm.accel.kvm import Kvm
from nitro_vmm.accel.kvm.vm import KvmVm

ECHO_PORT: Final = 7000
PATIENCE_S: Final = 600
BYTES: Final = 64
"""Of a message that is echoed."""


class Counting(Kvm):
    """KVM whose machines can be asked how often their guests were left."""

    kicks_pass_here = False
    """Whether kicks of queues are carried through this program."""

    def create_vm(self, ram: Ram, bus: Bus, *, processors: int = 1) -> KvmVm:
        """See `Kvm`."""
        self.vm = super().create_vm(ram, bus, processors=processors)
        if self.kicks_pass_here:
            self.vm.signal_on_write = lambda *_: None  # type: ignore[method-assign]
        return self.vm


def resident_mib() -> float:
    """How much memory this process holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise HostError("/proc/self/status does not say how much memory this process holds")


def in_words(exits: Counter[str]) -> str:
    """Kinds of exits, the most frequent first."""
    kinds = ", ".join(f"{number} {kind}" for kind, number in exits.most_common() if number)
    return f"{exits.total()} exits ({kinds})"


async def boot(image: Path, processors: int, kvm: Counting) -> tuple[bool, float]:
    """One boot to the end of the application; whether all went well, and when the heartbeat came, seconds."""
    config = EnclaveConfig(eif_path=image, processors=processors, boot_timeout_s=PATIENCE_S)
    with trio.fail_after(PATIENCE_S):
        async with Enclave(config, accelerator=kvm) as vm:
            result = await vm.wait()
            printed = b"".join([piece async for piece in vm.console.stream()])
    good = result.outcome is Outcome.ENDED and b"the application exited with 0" in printed
    if not good:
        say(f"{printed.decode(errors='replace')}\n{result}")
    return good and result.heartbeat_s is not None, result.heartbeat_s or 0.0


def boots(image: Path, count: int, processors: int) -> int:
    """Boot again and again, and print; returns how many boots went well."""
    good, heartbeats, kvm = 0, [], Counting()
    for _ in range(count):
        well, heartbeat_s = trio.run(boot, image, processors, kvm)
        good += well
        heartbeats.append(heartbeat_s)
        print(f"heartbeat after {heartbeat_s:.2f} s, {in_words(kvm.vm.exits())}", flush=True)
    middle = sorted(heartbeats)[len(heartbeats) // 2]
    print(
        f"{image.name}: {good} of {count} boots with {processors} processors, heartbeat after {middle:.2f} s"
    )
    return good


async def echo(image: Path, rounds: int, kvm: Counting) -> None:
    """Let an enclave echo messages, and print what a round trip costs."""
    config = EnclaveConfig(eif_path=image, memory_mib=128, boot_timeout_s=PATIENCE_S)
    before_mib = resident_mib()
    vm = Enclave(config, accelerator=kvm)
    with trio.fail_after(PATIENCE_S), vm.listen(images.AGENT_PORT) as listener:
        async with vm, await listener.accept() as agent:
            await agent.send_all(f"echo {ECHO_PORT}\n".encode())
            await agent.receive_some()
            print(f"an enclave of {vm.memory_mib} MiB that waits holds {resident_mib() - before_mib:.0f} MiB")
            async with await vm.connect(ECHO_PORT) as stream:
                exits, started = kvm.vm.exits(), time.monotonic()
                for _ in range(rounds):
                    await stream.send_all(bytes(BYTES))
                    left = BYTES
                    while left:
                        left -= len(await stream.receive_some(left))
                each_us = (time.monotonic() - started) / rounds * 1e6
                each = kvm.vm.exits() - exits
    kinds = ", ".join(f"{number / rounds:.2f} {kind}" for kind, number in each.most_common())
    how = "carried through this program" if kvm.kicks_pass_here else "passed on by the kernel"
    print(f"a round trip with kicks {how}: {each_us:.0f} µs, {each.total() / rounds:.2f} exits ({kinds})")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Count the exits of enclaves on KVM.",
        epilog="example: python tools/kvm.py python tools/bench_kvm.py --boots 20",
    )
    parser.add_argument("--boots", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=500, help="of the echo (default: %(default)s)")
    parser.add_argument("--processors", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    try:
        good = boots(images.hello("nitro"), options.boots, options.processors)
        for pass_here in (True, False) if options.rounds else ():
            kvm = Counting()
            kvm.kicks_pass_here = pass_here
            trio.run(echo, images.agent(), options.rounds, kvm)
    except (*images.ERRORS, HostError) as error:
        say(f"error: {error}")
        return 4
    return 0 if good == options.boots else 1


if __name__ == "__main__":
    sys.exit(main())
