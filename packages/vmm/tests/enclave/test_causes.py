"""Why an enclave did not boot: what the console shows of each cause."""

import pytest

from nitro_vmm.enclave.causes import CAUSES, CONSOLE, Cause, of_silence, recognise

SHOWN = [
    ("B01", "Kernel panic - not syncing: No working init found.  Try passing init= option to kernel."),
    ("B02", "[    0.412] Failed to execute /init (error -2)"),
    ("B02", "Kernel panic - not syncing: Requested init /sbin/start failed (error -2)."),
    ("B03", "Failed to execute /init (error -8)"),
    ("B04", "Failed to execute /init (error -13)"),
    ("B05", "[   12.1] Out of memory: Killed process 31 (python3) total-vm:123456kB"),
    ("B05", "Kernel panic - not syncing: System is deadlocked on memory"),
    ("B05", "Initramfs unpacking failed: write error"),
    ("B06", "[    0.2] Initramfs unpacking failed: invalid magic at start of compressed archive"),
    ("B07", "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"),
    ("B08", "mount cgroup /sys/fs/cgroup/cpu: No such device"),
    ("B09", "Fatal glibc error: CPU does not support x86-64-v3"),
    ("B09", "traps: app[31] trap invalid opcode ip:401000 sp:7ffc error:0 in app[401000+1000]"),
    ("B10", "nsm: version magic '4.14.256 SMP mod_unload' should be '6.12.117 SMP mod_unload'"),
    ("B10", "finit_module nsm.ko: Exec format error"),
    ("B11", "init: cannot run /app: ENOENT"),
]


@pytest.mark.parametrize(("code", "line"), SHOWN)
def test_what_the_console_shows(code: str, line: str) -> None:
    found = recognise(line.encode())

    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    "line",
    [
        "Linux version 6.12.117 (root@host)",
        "Run /init as init process",
        "goes on: cannot mount /sys/fs/cgroup/cpu: ENODEV",
        "Memory: 480000K/524288K available",
        "",
    ],
)
def test_what_is_no_cause(line: str) -> None:
    assert recognise(line.encode()) is None


def test_every_cause_that_the_console_shows_has_a_line_here() -> None:
    assert {code for code, _ in SHOWN} == {cause.code for _, _, cause in CONSOLE}


def test_every_cause_has_a_code_of_its_own_and_a_remedy() -> None:
    assert len({cause.code for cause in CAUSES}) == len(CAUSES)
    assert all(cause.message and cause.hint for cause in CAUSES)


@pytest.mark.parametrize(
    ("printed", "device_found", "wrong", "code"),
    [
        (False, False, False, "B12"),
        (True, False, False, "B13"),
        (True, True, False, "B14"),
        (False, True, False, "B14"),
        (True, True, True, "B15"),
    ],
)
def test_why_no_heartbeat_came(
    printed: bool,  # noqa: FBT001 - parameters of the test
    device_found: bool,  # noqa: FBT001
    wrong: bool,  # noqa: FBT001
    code: str,
) -> None:
    cause: Cause = of_silence(printed=printed, device_found=device_found, wrong=wrong)

    assert cause.code == code
