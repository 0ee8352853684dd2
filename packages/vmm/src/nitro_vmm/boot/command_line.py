"""Composes the kernel's command line: what the image says, what the user adds, where the devices are.

Linux hands what follows a lone ``--`` to init (kernel/params.c), so additions for the kernel go before it.
"""

import re
from collections.abc import Iterable

from nitro_vmm.address_map import COMMAND_LINE_BYTES_MAX, VirtioSlot
from nitro_vmm.errors import ImageError

ARGUMENT = re.compile(rb'(?:"[^"]*(?:"|$)|[^\s"])+')
"""One argument. White space between double quotes is part of it (Linux, lib/cmdline.c, ``next_arg``)."""


def compose(image: bytes, additions: Iterable[bytes], *, bytes_max: int) -> bytes:
    """Put the command line together, as the guest sees it, without a terminating zero.

    Args:
        image: The image's own command line; zeros at its end are dropped.
        additions: Arguments for the kernel, put behind the image's own; empty ones are left out.
        bytes_max: How many bytes the kernel takes.

    Raises:
        ImageError: The command line contains a zero byte or is too long.
    """
    image = image.rstrip(b"\0")
    for match in ARGUMENT.finditer(image):
        if match.group() == b"--":
            kernel, init = image[: match.start()], image[match.start() :]
            break
    else:
        kernel, init = image, b""
    line = b" ".join(part.strip() for part in (kernel, *additions, init) if part.strip())
    if (zero := line.find(0)) >= 0:
        raise ImageError(
            "the command line contains a zero byte, where Linux would end it",
            section="command line",
            offset=zero,
        )
    bytes_max = min(bytes_max, COMMAND_LINE_BYTES_MAX - 1)
    if len(line) > bytes_max:
        raise ImageError(
            f"the command line is {len(line)} bytes with what was appended, and this kernel takes "
            f"{bytes_max}; shorten it, or what is appended",
            section="command line",
        )
    return line


def virtio_mmio(slot: VirtioSlot) -> bytes:
    """The argument that announces a device to kernels with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES."""
    return f"virtio_mmio.device={slot.size // 1024}K@{slot.address:#x}:{slot.irq}".encode()
