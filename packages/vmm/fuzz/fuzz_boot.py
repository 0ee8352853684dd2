"""Any bytes are a kernel that loads or an ImageError, and nothing else.

The first byte chooses how deep the rest gets: as a whole kernel, as the setup header of a bzImage that is
otherwise whole, as a piece of a payload, as ELF headers, or as ramdisks and command line. Run it as
``python packages/vmm/fuzz/fuzz_boot.py -max_total_time=600``; all of libFuzzer's options work.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "boot"))

with atheris.instrument_imports(include=["nitro_vmm"]):
    from boot_images import COMPRESSIONS, FakeRam, make_bzimage, small_elf
    from nitro_vmm.address_map import MIB, virtio_slot
    from nitro_vmm.boot.loader import load
    from nitro_vmm.errors import ImageError

MEMORY_BYTES = 32 * MIB
BZIMAGE = make_bzimage(COMPRESSIONS["gzip"](small_elf()))
ELF = small_elf()
PAYLOADS = [compress(ELF) for compress in COMPRESSIONS.values()]


def fuzz_kernel(data: bytes) -> None:
    """Load ``data`` as a whole kernel."""
    load_all(data)


def fuzz_setup_header(data: bytes) -> None:
    """Load a bzImage with ``data`` in its setup header, but for the magic numbers."""
    image = bytearray(BZIMAGE)
    image[0x206 : 0x206 + len(data[:0x90])] = data[:0x90]
    image[0x1F1] = data[0x90] if len(data) > 0x90 else image[0x1F1]
    load_all(bytes(image))


def fuzz_payload(data: bytes) -> None:
    """Load a bzImage with ``data`` somewhere in its payload: two bytes say in which one, and where."""
    choice, position = (data + bytes(2))[:2]
    payload = bytearray(PAYLOADS[choice % len(PAYLOADS)])
    position = min(position, len(payload))
    payload[position : position + len(data) - 2] = data[2:]
    load_all(make_bzimage(bytes(payload), init_size=MIB))


def fuzz_elf(data: bytes) -> None:
    """Load an ELF kernel with ``data`` in its headers, behind the magic number."""
    load_all(ELF[:16] + data[:160] + ELF[16 + len(data[:160]) :])


def fuzz_ramdisk(data: bytes) -> None:
    """Load a good kernel with ``data`` as the command line and as two ramdisks."""
    load_all(ELF, command_line=data, ramdisks=[data[: len(data) // 2], data])


def load_all(kernel: bytes, *, command_line: bytes = b"quiet", ramdisks: list[bytes] | None = None) -> None:
    """Load an image; only ImageError may come out."""
    with suppress(ImageError):
        load(
            FakeRam(MEMORY_BYTES),
            MEMORY_BYTES,
            kernel_image=kernel,
            image_command_line=command_line,
            ramdisks=ramdisks or [],
            rng_seed=bytes(32),
            virtio_slots=[virtio_slot(0), virtio_slot(1)],
        )


TARGETS: tuple[Callable[[bytes], None], ...] = (
    fuzz_kernel,
    fuzz_setup_header,
    fuzz_payload,
    fuzz_elf,
    fuzz_ramdisk,
)


def test_one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    TARGETS[data[0] % len(TARGETS) if data else 0](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
