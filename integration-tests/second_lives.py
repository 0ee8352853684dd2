"""An image whose init tells what a saved machine's guests must not share, and what it said."""

import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import images
from nitro_eif import Node, write_cpio
from nitro_vmm import BlockingEnclave, EnclaveConfig

SOURCE = Path(__file__).parent / "guest" / "second_life.c"
CMDLINE = "reboot=k panic=1 console=ttyS0 loglevel=8"
REPORT_PORT = 7000
PATIENCE_S = 120
LONG = 64


def build(directory: Path, kernel: str, *options: str, name: str = "", ballast: bytes = b"") -> Path:
    """The image, with one of the kernels of `images`.

    Args:
        directory: Where to.
        kernel: Which.
        options: More for ``eif build``.
        name: What the file is called, without .eif; the kernel's name if it is empty.
        ballast: What else is in its ramdisk.

    Raises:
        images.ERRORS: It cannot be built.
        FileNotFoundError: There is no C compiler.
    """
    program, archive, image = directory / "init", directory / "init.cpio", directory / f"{name or kernel}.eif"
    subprocess.run(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-o", program, SOURCE], check=True)
    with archive.open("wb") as file:
        write_cpio(file, [("ballast", Node.file(ballast)), ("init", Node.file(program.read_bytes(), 0o755))])
    kernel_options = images.kernel_options(kernel)
    command = [images.command("eif"), "build", *kernel_options, "--cmdline", CMDLINE, *options]
    subprocess.run([*command, "--ramdisk", archive, "--output", image], check=True, stdout=subprocess.DEVNULL)
    return image


@dataclass
class SecondLife:
    """What one enclave said."""

    launched_s: float
    """When it was launched, by the host's wall clock."""
    heard_s: float = 0
    """When all was said."""
    said: dict[str, bytes] = field(default_factory=dict)
    """By the names of the sections."""

    @classmethod
    def of(cls, config: EnclaveConfig) -> Self:
        """Launch an enclave, and see it through to its end."""
        life = cls(launched_s=time.time())
        with BlockingEnclave(config) as enclave, enclave.listen(REPORT_PORT) as listener:
            with listener.accept(PATIENCE_S) as stream, stream.makefile("rb") as file:
                stream.settimeout(PATIENCE_S)
                while line := file.readline():
                    name, length = line.decode().split()
                    life.said[name] = file.read(int(length))
            life.heard_s = time.time()
            enclave.wait(PATIENCE_S)
        return life

    def clocks(self, name: str) -> tuple[float, float]:
        """Wall clock and monotonic clock of the guest, seconds."""
        wall_s, wall_ns, monotonic_s, monotonic_ns = struct.unpack("<4q", self.said[name])
        return wall_s + wall_ns / 1e9, monotonic_s + monotonic_ns / 1e9

    def blocks(self) -> set[bytes]:
        """All of its random numbers, in pieces of eight bytes that begin anywhere in short ones."""
        found: set[bytes] = set()
        for name, data in self.said.items():
            if name not in {"cid", "clocks", "later", "log", "child-stack"}:
                step = 8 if len(data) > LONG else 1
                found.update(data[at : at + 8] for at in range(0, len(data) - 7, step))
        return found


def together(configs: list[EnclaveConfig]) -> list[SecondLife]:
    """Launch enclaves at once."""
    lives: list[SecondLife | None] = [None] * len(configs)

    def live(index: int) -> None:
        lives[index] = SecondLife.of(configs[index])

    threads = [threading.Thread(target=live, args=(index,)) for index in range(len(configs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [life for life in lives if life is not None]
