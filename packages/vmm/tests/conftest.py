"""Images whose kernels are a few bytes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nitro_eif import BuildMetadata, Contents, Eif, Metadata, write_eif
from nitro_vmm.run.registry import alive, entries
from nitro_vmm.testing import tiny_kernel
from vmm_command import Vmm

METADATA = Metadata(image_name="test", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00")).pack()
# mov dx,0x3f8; mov al,'h'; out dx,al; mov al,'i'; out dx,al; cli; hlt
SAY_HI_AND_HALT = bytes.fromhex("66baf803 b068ee b069ee faf4")
# The same, and then jmp $.
SAY_HI_AND_SPIN = SAY_HI_AND_HALT[:-2] + bytes.fromhex("ebfe")
SECTION_HEADER_BYTES = 12
VAST_BYTES = 1 << 40

# mov eax,[0xd0000000], the first virtio device's first register; mov dx,0x602; mov al,1; out dx,al, a reset.
LOOK_AND_RESET = bytes.fromhex("a1000000d000000000 66ba0206 b001ee f4")


@pytest.fixture
def looking_image(image: Path) -> Path:
    """An image that looks for a virtio device at once, and then resets the machine."""
    return make_image(image.with_name("looking.eif"), LOOK_AND_RESET)


@pytest.fixture
def spinning_image(image: Path) -> Path:
    """An image that prints "hi" and then computes for ever."""
    return make_image(image.with_name("spinning.eif"), SAY_HI_AND_SPIN)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image that prints "hi" and halts for good."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return make_image(tmp_path / "small.eif", SAY_HI_AND_HALT)


@pytest.fixture
def vast_image(image: Path) -> Path:
    """An image whose last ramdisk is so long that nobody waits for its measurement; the file has holes."""
    path = image.with_name("vast.eif")
    with Eif.open(image) as eif:
        last = max(eif.sections, key=lambda section: section.offset)
        place, size = last.offset, len(last.data)
    grown = size.to_bytes(8, "big"), (size + VAST_BYTES).to_bytes(8, "big")
    data = image.read_bytes()
    headers = place + SECTION_HEADER_BYTES
    path.write_bytes(data[:headers].replace(*grown) + data[headers:])
    with path.open("r+b") as file:
        file.truncate(len(data) + VAST_BYTES)
    return path


def make_image(path: Path, code: bytes) -> Path:
    contents = Contents(
        kernel=tiny_kernel(code),
        cmdline=b"quiet",
        ramdisks=[bytes(1 << 20)],
        metadata=METADATA,
    )
    write_eif(contents, path)
    return path


def print_and_halt(text: bytes) -> bytes:
    """Code that prints a text and halts for good."""
    port = bytes.fromhex("66baf803")  # mov dx,0x3f8
    return port + b"".join(bytes((0xB0, byte, 0xEE)) for byte in text) + bytes.fromhex("faf4")


@pytest.fixture
def image_that_prints(image: Path) -> Callable[[bytes], Path]:
    """Makes an image that prints a text and halts for good."""
    return lambda text: make_image(image.with_name("printing.eif"), print_and_halt(text))


@pytest.fixture
def vmm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vmm]:
    """The command, with a runtime directory of its own; whatever it left running is ended."""
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    command = Vmm(runtime)
    yield command
    if any(alive(entry) for entry in entries()):
        command("terminate", "--all")
