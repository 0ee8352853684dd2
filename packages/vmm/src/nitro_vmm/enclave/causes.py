"""Why an enclave did not boot, or its application did not run: what the console shows, and what to do.

The table is tried from the top on each line, and the first line that matches counts, because what follows a
cause are its consequences.
"""

import re
from typing import Final, NamedTuple


class Cause(NamedTuple):
    """One reason."""

    code: str
    """Its name for ``vmm explain``."""
    message: str
    """What is wrong, in words."""
    hint: str
    """What to do about it."""


INIT_MISSING: Final = Cause(
    "B01",
    "the image has no program to start: its first ramdisk holds no /init that Linux can run",
    "put an executable /init into the first ramdisk; eif build does",
)
INIT_LOADER: Final = Cause(
    "B02",
    "the image's init cannot be run: its file, or the interpreter or loader that it names, is not there",
    "link it statically, or put its loader and libraries into the first ramdisk",
)
INIT_FORMAT: Final = Cause(
    "B03",
    "the image's init is no program of this processor",
    "build it for x86_64; a script must begin with #! and its interpreter",
)
INIT_MODE: Final = Cause("B04", "the image's init may not be executed", "give the file the mode 0755")
NO_MEMORY: Final = Cause(
    "B05", "the enclave ran out of memory", "give it more with --memory-mib; all ramdisks are held in memory"
)
RAMDISK: Final = Cause(
    "B06",
    "the kernel could not unpack a ramdisk",
    "use a compression that this kernel knows, or none; eif describe --findings checks the ramdisks",
)
NO_ROOT: Final = Cause(
    "B07",
    "the kernel found no ramdisk that it could use, and looked for a disk",
    "the kernel needs CONFIG_BLK_DEV_INITRD and the ramdisk's compression",
)
CGROUP: Final = Cause(
    "B08",
    "the image's init wants version 1 of control groups, which this kernel does not have",
    "use a kernel with CONFIG_CGROUPS and its controllers of version 1, or our init: eif build --init",
)
PROCESSOR: Final = Cause(
    "B09",
    "a program needs a processor feature that the emulated processor does not have",
    "build for x86-64-v2, without AVX; a base image for x86-64-v3 does not run here",
)
MODULE: Final = Cause(
    "B10",
    "a kernel module of the image does not fit its kernel",
    "take nsm.ko and the kernel from the same build",
)
APPLICATION_MISSING: Final = Cause(
    "B11",
    "the application cannot be run: its file, or the interpreter or loader that it names, is not there",
    "look at the image's /cmd and files with eif describe and eif extract",
)
NO_CONSOLE: Final = Cause(
    "B12",
    "the kernel printed nothing",
    "the command line needs console=ttyS0; without it, add it with --cmdline-append to see what happens",
)
NO_VIRTIO: Final = Cause(
    "B13",
    "the kernel has not found the vsock device",
    "it needs CONFIG_VIRTIO_VSOCKETS, CONFIG_VIRTIO_MMIO, and CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES or ACPI; "
    "what is a module, its init must load",
)
NO_HEARTBEAT: Final = Cause(
    "B14",
    "the image's init has not connected to port 9000 of its parent, CID 3",
    "nitro-cli's init and ours do, once they have started; --boot-timeout-s gives it more time",
)
WRONG_HEARTBEAT: Final = Cause(
    "B15",
    "the image's init connected to port 9000 and did not send the byte 0xB7",
    "it must send this byte, and gets it back",
)

CAUSES: Final = (
    INIT_MISSING,
    INIT_LOADER,
    INIT_FORMAT,
    INIT_MODE,
    NO_MEMORY,
    RAMDISK,
    NO_ROOT,
    CGROUP,
    PROCESSOR,
    MODULE,
    APPLICATION_MISSING,
    NO_CONSOLE,
    NO_VIRTIO,
    NO_HEARTBEAT,
    WRONG_HEARTBEAT,
)

CONSOLE: Final = (
    (b"error -2)", rb"(?:Failed to execute|Requested init) \S+ (?:failed )?\(error -2\)", INIT_LOADER),
    (b"error -8)", rb"(?:Failed to execute|Requested init) \S+ (?:failed )?\(error -8\)", INIT_FORMAT),
    (b"error -13)", rb"(?:Failed to execute|Requested init) \S+ (?:failed )?\(error -13\)", INIT_MODE),
    (b"no working init", rb"No working init found", INIT_MISSING),
    (b"memory", rb"Out of memory: Kill|System is deadlocked on memory", NO_MEMORY),
    (b"unpacking failed", rb"Initramfs unpacking failed: write", NO_MEMORY),
    (b"unpacking failed", rb"Initramfs unpacking failed: ", RAMDISK),
    (b"root", rb"VFS: Unable to mount root fs|Cannot open root device", NO_ROOT),
    (
        *(b"cgroup", rb"(?i)cgroup.*: (?:invalid argument|no such (?:device|file)|operation not supported)"),
        CGROUP,
    ),
    (
        b"cpu",
        rb"CPU does not support x86-64-v|requires the following features not present on the CPU",
        PROCESSOR,
    ),
    (b"invalid opcode", rb"traps: .* trap invalid opcode", PROCESSOR),
    (b"format", rb"(?i)(?:nsm|finit_module|insmod).*(?:exec format error|invalid module format)", MODULE),
    (b"version magic", rb"version magic '.*' should be", MODULE),
    (b"cannot run", rb"^init: cannot run .*: ENOENT", APPLICATION_MISSING),
)
"""What the console shows of each: Linux 4.14 to 6.12 (init/main.c, init/initramfs.c, init/do_mounts.c,
mm/oom_kill.c, arch/x86/kernel/traps.c), glibc, AWS's init and ours.

A pattern is looked for where its first element is in the line, in lower case, because a kernel prints some
hundred lines while everything else wants to start, and almost none has any."""


def recognise(line: bytes) -> Cause | None:
    """The cause that a line of the console shows."""
    lowered = line.lower()
    for marker, pattern, cause in CONSOLE:
        if marker in lowered and re.search(pattern, line):
            return cause
    return None


def of_silence(*, printed: bool, device_found: bool, wrong: bool) -> Cause:
    """Why no heartbeat has come.

    Args:
        printed: Whether the console had any output.
        device_found: Whether a driver runs the vsock device.
        wrong: Whether something came that is no heartbeat.
    """
    if wrong:
        return WRONG_HEARTBEAT
    if device_found:
        return NO_HEARTBEAT
    return NO_VIRTIO if printed else NO_CONSOLE
