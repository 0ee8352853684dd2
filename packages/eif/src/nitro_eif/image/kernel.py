"""Which kernels Nitro loads: a bzImage for x86_64, an Image for aarch64.

An enclave with another kernel never starts, and shows nothing on its console.
"""

from typing import Final

from nitro_eif.architecture import Architecture

# Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
_BZIMAGE_MAGIC_OFFSET: Final = 0x202
_BZIMAGE_MAGIC: Final = b"HdrS"
# Linux Documentation/arch/arm64/booting.rst, "Call the kernel image".
_ARM64_MAGIC_OFFSET: Final = 0x38
_ARM64_MAGIC: Final = b"ARM\x64"

_ELF: Final = b"\x7fELF"


def kernel_problem(kernel: bytes | memoryview, architecture: Architecture) -> str | None:
    """Why Nitro cannot load a kernel; `None` if it has the right form.

    Args:
        kernel: The kernel's bytes, of which the first kilobyte is looked at.
        architecture: The processor that it is for.
    """
    wanted = "a bzImage" if architecture is Architecture.X86_64 else "an arm64 Image"
    found = _kind(bytes(kernel[: _BZIMAGE_MAGIC_OFFSET + len(_BZIMAGE_MAGIC)]))
    return None if found == wanted else f"the kernel is {found}, and Nitro loads {wanted} only"


def kernel_hint(architecture: Architecture) -> str:
    """Where the kernel that Nitro loads is found in the tree of a kernel's build."""
    where = "arch/x86/boot/bzImage" if architecture is Architecture.X86_64 else "arch/arm64/boot/Image"
    return f"give {where} of the kernel's build, or /boot/vmlinuz-VERSION of a distribution"


def _kind(start: bytes) -> str:
    if start[_BZIMAGE_MAGIC_OFFSET:].startswith(_BZIMAGE_MAGIC):
        return "a bzImage"
    if start[_ARM64_MAGIC_OFFSET:].startswith(_ARM64_MAGIC):
        return "an arm64 Image"
    if start.startswith(_ELF):
        return "an ELF file (vmlinux)"
    if start.startswith(b"MZ"):
        return "an EFI program"
    if start.startswith(b"\x1f\x8b"):
        return "compressed with gzip"
    return f"of an unknown kind that starts with {start[:4].hex(' ') or 'nothing'}"
