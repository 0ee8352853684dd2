"""A kernel of 93 bytes with system calls, and one program, which prints the random bytes it was given."""

import struct
from pathlib import Path

from nitro_eif import BuildMetadata, Contents, Metadata, write_eif
from nitro_vmm.testing import KERNEL_ENTRY, tiny_kernel

METADATA = Metadata(image_name="tiny", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00")).pack()
PROGRAM = KERNEL_ENTRY + 0x400
HANDLER = KERNEL_ENTRY + 0x800
STACK = KERNEL_ENTRY + 0x1000
RANDOM = KERNEL_ENTRY + 0x1080

KERNEL_CODE = bytes.fromhex(
    "66baf803 b06b ee"  # mov dx,0x3f8; mov al,'k'; out dx,al
    "800c2500a0000004 800c2500b0000004 800c2508c0000004"  # or byte [page tables],4: programs may be there
    "0f20d8 0f22d8"  # mov rax,cr3; mov cr3,rax
    "b9800000c0 b801050000 31d2 0f30"  # EFER: SCE, LME, LMA
    "ffc1 31c0 ba10002300 0f30"  # STAR: CS 0x10 for the kernel, 0x33 for programs
    "ffc1 b800082000 31d2 0f30"  # LSTAR: HANDLER
    "bc00102000 b900042000 41bb02300000 480f07"  # rsp: STACK; rcx: PROGRAM; r11: IOPL 3; sysret
)
PROGRAM_CODE = bytes.fromhex(
    "66baf803 be80102000 b910000000"  # mov dx,0x3f8; mov esi,RANDOM; mov ecx,16
    "ac ee e2fc"  # print: lodsb; out dx,al; loop print
    "66ba0006 b034 ee ebfe"  # mov dx,0x600; mov al,0x34; out dx,al: power off; jmp $
)
RETURN_0 = bytes.fromhex("31c0 480f07")  # xor eax,eax; sysret
RETURN_THE_ARGUMENT = bytes.fromhex("4889f8 480f07")  # mov rax,rdi; sysret
RETURN_ENOSYS = bytes.fromhex("48c7c0daffffff 480f07")  # mov rax,-38; sysret
SPIN = bytes.fromhex("ebfe")
AT_RANDOM, OLD_RANDOM = 25, bytes(range(65, 81))


def kernel(handler: bytes = RETURN_0, *, code: bytes = KERNEL_CODE) -> bytes:
    """The kernel's file.

    Args:
        handler: What takes system calls.
        code: How the kernel begins.
    """
    image = bytearray(0x1100)
    image[: len(code)] = code
    image[0x400 : 0x400 + len(PROGRAM_CODE)] = PROGRAM_CODE
    image[0x800 : 0x800 + len(handler)] = handler
    # No arguments, no environment, and an auxiliary vector of one entry.
    stack = struct.pack("<7Q", 0, 0, 0, AT_RANDOM, RANDOM, 0, 0)
    image[0x1000 : 0x1000 + len(stack)] = stack
    image[0x1080:0x1090] = OLD_RANDOM
    return tiny_kernel(bytes(image), memory_bytes=0x2000)


def make_image(path: Path, handler: bytes = RETURN_0, *, code: bytes = KERNEL_CODE) -> Path:
    """An image with this kernel."""
    contents = Contents(
        kernel=kernel(handler, code=code), cmdline=b"quiet", ramdisks=[bytes(4096)], metadata=METADATA
    )
    write_eif(contents, path)
    return path
