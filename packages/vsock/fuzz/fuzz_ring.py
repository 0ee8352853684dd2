"""Any driver: chains come out of a virtqueue as the specification says, or are refused, and the ring goes on.

Run it as ``python packages/vsock/fuzz/fuzz_ring.py -max_total_time=600``; all of libFuzzer's options work.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

with atheris.instrument_imports(include=["nitro_vsock"]):
    from hostile import hostile_ring

if __name__ == "__main__":
    atheris.Setup(sys.argv, hostile_ring)
    atheris.Fuzz()
