"""Runs in an enclave of Debian's kernel: makes a second security module by CUSE, and asks it."""

import ctypes
import fcntl
import subprocess
import sys
import threading
from pathlib import Path

from nitro_nsm import DeviceTransport, NsmClient
from nitro_nsm.ioctl import NSM_IOCTL, NSM_RAW

FINIT_MODULE = 313  # of x86-64
DEVICE = Path("/dev/nsm2")

with Path("/check/cuse.ko").open("rb") as module:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(FINIT_MODULE, module.fileno(), b"", 0) != 0:
        sys.exit(f"cuse.ko: error {ctypes.get_errno()}")
serve = [sys.executable, "-m", "nitro_nsm.cli", "device", "--name", DEVICE.name, "--pcr", "0=" + "ab" * 48]
with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
    assert server.stdout is not None
    print(server.stdout.readline(), end="")
    print(f"mode {DEVICE.stat().st_mode & 0o777:o}")
    documents: list[bytes] = []

    def ask() -> None:
        with DeviceTransport(DEVICE) as transport:
            client = NsmClient(transport)
            assert client.describe_pcr(0).value == b"\xab" * 48
            documents.append(client.attest(user_data=b"u" * 1024, nonce=b"n" * 1024, public_key=b"p" * 1024))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(documents)} documents")
    with DEVICE.open("r+b", buffering=0) as device:
        for name, request, what in (
            ("long", NSM_RAW.pack(0x1000, 0x1001, 0x1000, 0x3000), NSM_IOCTL),
            ("nowhere", NSM_RAW.pack(0x10, 10, 0x10, 10), NSM_IOCTL),
            ("another", bytes(32), 0x5401),
        ):
            try:
                fcntl.ioctl(device, what, bytearray(request))
            except OSError as error:
                print(f"{name} {error.errno}")
    server.terminate()
print(f"server {server.returncode}, device {DEVICE.exists()}")
