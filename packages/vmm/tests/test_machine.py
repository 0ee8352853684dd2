"""The machine's threads do not stop each other."""

import threading

from nitro_nsm import Nsm, NsmConfig
from nitro_vmm.accel.state import EntryState
from nitro_vmm.address_map import BOOT_GDT, BOOT_PAGE_TABLES, MIB
from nitro_vmm.boot import long_mode
from nitro_vmm.machine import End, Machine, Memory

CODE = 0x20_0000
# mov dx,0x3f8; mov al,'x'; print: out dx,al; jmp print
PRINT_FOR_EVER = bytes.fromhex("66baf803 b078 ee ebfd")
PATIENCE_S = 10


def test_a_console_that_waits_holds_up_nobody_but_the_guest() -> None:
    memory = Memory(4 * MIB)
    long_mode.write(memory.guest)
    memory.guest.slice(CODE, len(PRINT_FOR_EVER))[:] = PRINT_FOR_EVER
    waiting, let_go, entered = threading.Event(), threading.Event(), threading.Event()

    def console(_data: bytes) -> None:
        waiting.set()
        let_go.wait()

    machine = Machine(
        memory,
        tsc_hz=2_500_000_000,
        nsm=Nsm(NsmConfig()),
        console=console,
        console_ready=lambda: None,
    )
    entry = EntryState(
        rip=CODE,
        rsi=0,
        rsp=0,
        cr3=BOOT_PAGE_TABLES,
        gdt_address=BOOT_GDT,
        gdt_limit=long_mode.GDT_LIMIT,
        code_selector=long_mode.CODE_SELECTOR,
        data_selector=long_mode.DATA_SELECTOR,
        command_line=b"",
    )
    processor = threading.Thread(target=machine.run, args=(entry,))
    processor.start()
    assert waiting.wait(PATIENCE_S)

    other = threading.Thread(target=machine.locked, args=(entered.set,))
    other.start()
    free = entered.wait(PATIENCE_S)
    let_go.set()
    while processor.is_alive():
        machine.stop()
        processor.join(0.02)
    other.join()

    assert free
    assert machine.end is End.STOPPED
