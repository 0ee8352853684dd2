"""Code that a process does not need is given back, and nothing else."""

import re
import ssl
import subprocess
import sys
from pathlib import Path

from nitro_vmm.run.code_pages import give_back, mappings, unchanged

SMAPS = """\
00400000-00452000 r--p 00000000 08:02 173521                     /usr/lib/liba.so.1
Rss:                  72 kB
Anonymous:             0 kB
00452000-00500000 r-xp 00052000 08:02 173521                     /usr/lib/liba.so.1
Rss:                 600 kB
Anonymous:             0 kB
00500000-00510000 r--p 00100000 08:02 173521                     /usr/lib/liba.so.1
Rss:                  64 kB
Anonymous:            64 kB
00510000-00520000 rw-p 00110000 08:02 173521                     /usr/lib/liba.so.1
Rss:                  64 kB
Anonymous:             0 kB
7f1000000000-7f1000010000 r-xp 00000000 00:00 0
Rss:                  64 kB
Anonymous:             0 kB
7f2000000000-7f2000001000 r--p 00000000 08:02 5                  /home/me/libs.so.d/image.eif
Rss:                   4 kB
Anonymous:             0 kB
7f3000000000-7f3000002000 r-xp 00001000 08:02 98                 /lib/a module.cpython-311.so
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
"""
NEW = "7f3000000000"


def resident_kib(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def test_only_what_files_of_libraries_have_is_given_back() -> None:
    found = list(unchanged(SMAPS, frozenset(SMAPS.splitlines())))

    assert found == [(0x400000, 0x52000), (0x452000, 0xAE000), (0x7F3000000000, 0x2000)]


def test_a_library_that_was_not_there_before_is_left_alone() -> None:
    before = frozenset(line for line in SMAPS.splitlines() if not line.startswith(NEW))

    assert (0x7F3000000000, 0x2000) not in list(unchanged(SMAPS, before))


def test_the_process_has_less_and_goes_on() -> None:
    before = resident_kib("RssFile")

    give_back(mappings())

    assert resident_kib("RssFile") < before
    assert ssl.create_default_context().verify_mode is ssl.CERT_REQUIRED


def test_libraries_may_be_loaded_meanwhile() -> None:
    program = (
        "import threading\n"
        "from nitro_vmm.run.code_pages import give_back, mappings\n"
        "before, done = mappings(), threading.Event()\n"
        "def work():\n"
        "    while not done.is_set():\n"
        "        give_back(before)\n"
        "worker = threading.Thread(target=work)\n"
        "worker.start()\n"
        "import _decimal, _lzma, _bz2, _elementtree, _asyncio, socket\n"
        "socket.getaddrinfo('localhost', 80)\n"
        "done.set()\n"
        "worker.join()\n"
        "print(_decimal.Decimal(1) / 8)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "0.125\n"
