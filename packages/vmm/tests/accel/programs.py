"""Segments, a TSS and pages with which a tiny guest has programs, and a kernel that they can call."""

import struct

from nitro_vmm.boot import long_mode
from tiny_guest import LIDT, Guest

GDT, TSS, USER_CODE, KERNEL_STACK = 0x20_A000, 0x20_B000, 0x20_6000, 0x20_9000
KERNEL_ENTRY = 0x20_7000


def make_programs_possible(guest: Guest) -> str:
    """Have pages, segments and a TSS for programs; the code that goes to the one at `USER_CODE`."""
    for table in (0, 1, 2, 3, 4, 5):
        place = guest.ram.slice(long_mode.entry_state(0, rsp=0).cr3 + 0x1000 * table, 0x1000).cast("Q")
        for index, entry in enumerate(place):
            place[index] = entry | 4 if entry else 0
    entries = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0, 0x00CF_F300_0000_FFFF]
    entries += [0x00AF_FB00_0000_FFFF, (TSS & 0xFF_FFFF) << 16 | 0x8900_0000_0067 | TSS >> 24 << 56, 0]
    guest.ram.slice(GDT, 8 * len(entries))[:] = struct.pack(f"<{len(entries)}Q", *entries)
    guest.ram.slice(TSS + 4, 8)[:] = struct.pack("<Q", KERNEL_STACK)
    guest.put(0x20_4010, struct.pack("<HQ", 8 * len(entries) - 1, GDT).hex())
    wrmsr = "0f30"
    return (
        "0f011425 10402000 b838000000 0f00d8"  # lgdt [0x204010]; mov eax,0x38; ltr ax
        f"{LIDT} b9800000c0 0f32 83c801 {wrmsr}"  # EFER.SCE
        f"b9810000c0 31c0 ba10002000 {wrmsr}"  # STAR: kernel 0x10, programs from 0x20 on
        f"b9820000c0 b8{struct.pack('<I', KERNEL_ENTRY).hex()} 31d2 {wrmsr}"  # LSTAR
        f"b9840000c0 b800020000 {wrmsr}"  # FMASK: IF
        f"b9{struct.pack('<I', USER_CODE).hex()} 41bb02000000 480f07"  # ecx: there; r11d: flags; sysretq
    )
