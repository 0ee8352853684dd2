"""Any guest and any host programs: the device never raises, never spins, and lets go of everything.

Run it as ``python packages/vsock/fuzz/fuzz_guest.py -max_total_time=600``; all of libFuzzer's options work.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

with atheris.instrument_imports(include=["nitro_vsock"]):
    from hostile import hostile_guest

if __name__ == "__main__":
    atheris.Setup(sys.argv, hostile_guest)
    atheris.Fuzz()
