"""Any two guests that connect to each other: nothing raises, nothing is held when they are gone.

Run it as ``python packages/vsock/fuzz/fuzz_siblings.py -max_total_time=600``; all options of libFuzzer work.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

with atheris.instrument_imports(include=["nitro_vsock"]):
    from hostile import hostile_siblings

if __name__ == "__main__":
    atheris.Setup(sys.argv, hostile_siblings)
    atheris.Fuzz()
