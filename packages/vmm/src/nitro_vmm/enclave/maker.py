"""Has a saved machine made for the next launch, by a process of its own.

It boots the image once more, at the lowest priority and after the enclave's heartbeat, because saving the
machine that runs would make its user wait. Nobody waits for it, and it outlives the enclave.
"""

import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from nitro_vmm.cache import Cache
from nitro_vmm.defaults import ENVIRONMENT_PREFIX
from nitro_vmm.enclave.saved import KERNEL, refusal_name
from nitro_vmm.snapshot.layout import Parameters

if TYPE_CHECKING:
    from nitro_vmm.plain_config import EnclaveSettings


def make_saved_machine(config: "EnclaveSettings", parameters: Parameters) -> None:
    """Start the process, unless it has been found that this machine cannot be saved.

    Args:
        config: Of the enclave.
        parameters: Its machine.
    """
    refused = Cache().open(refusal_name(parameters))
    if refused is not None:
        refused.close()
        return
    command = [sys.executable, "-P", "-m", "nitro_vmm", "snapshot", "--cached", "--quiet"]
    command += [str(config.eif_path.absolute()), "--accel", parameters.accelerator]
    command += ["--memory-mib", str(parameters.memory_bytes >> 20)]
    command += ["--processors", str(parameters.processors)]
    command += ["--boot-timeout-s", str(config.boot_timeout_s)]
    if parameters.kind == KERNEL:
        command += ["--kernel"]
    if config.cmdline_append:
        command += [f"--cmdline-append={config.cmdline_append}"]
    if config.quiet_kernel:
        command += ["--quiet-kernel"]
    if config.seqpacket:
        command += ["--seqpacket"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)
    }
    with suppress(OSError):  # no more processes: the next launch boots as this one did
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        threading.Thread(target=process.wait, name="saved machine", daemon=True).start()
