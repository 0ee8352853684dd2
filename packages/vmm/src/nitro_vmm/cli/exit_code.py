"""What the command exits with; importing this loads nothing."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of ``vmm``."""

    ENDED = 0
    """The enclave powered off, rebooted or halted for good."""
    FAILED = 1
    """A failure of ours."""
    USAGE = 2
    """The command line or the configuration cannot be."""
    IMAGE = 3
    """The image cannot be read, or would not boot."""
    HOST = 4
    """The host lacks something."""
    BOOT_TIMEOUT = 5
    """No heartbeat in time."""
    PANIC = 10
    """The enclave's kernel panicked."""
    CRASH = 11
    """Triple fault, or the guest ran where there is no code."""
    INTERRUPTED = 130
    """Ctrl-C."""
    TERMINATED = 143
    """SIGTERM; other signals give 128 and their number as well."""


EXIT_CODES = """\
exit codes:
    0  the enclave powered off, rebooted or halted
    1  a failure of vmm itself
    2  bad usage, or less memory than the image needs
    3  the image cannot be read, or Nitro would not boot it
    4  the host lacks something (a socket in use, another build of Unicorn)
    5  no heartbeat within --boot-timeout-s
   10  the enclave's kernel panicked
   11  the enclave crashed: a triple fault, or code where there is no memory
  130  Ctrl-C; 143  SIGTERM; other signals likewise 128 and their number
"""
"""For ``--help``."""

EXPLANATIONS = {
    0: ("the enclave powered off, rebooted or halted, as enclaves do at their end", "nothing"),
    1: ("vmm itself failed", "run it again with VMM_DEBUG=1, and report what it prints"),
    2: ("the command line or the configuration cannot be", "the message names the setting; vmm run --help"),
    3: ("the image cannot be read, or Nitro would not boot it", "eif describe --findings IMAGE says why"),
    4: ("this machine lacks something", "vmm doctor says what"),
    5: ("no heartbeat came in time", "the last lines say why; --boot-timeout-s gives it more time"),
    10: (
        "the enclave's kernel panicked",
        "the last lines have the cause, and --console shows the kernel's words",
    ),
    11: ("the enclave crashed", "its kernel jumped into nowhere; try it in QEMU to compare"),
    130: ("Ctrl-C", "nothing"),
    143: ("SIGTERM, or vmm stop", "nothing"),
}
"""What each code means, and what to do."""
