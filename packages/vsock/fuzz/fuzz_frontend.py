"""Any front-end: the vhost-user back-end answers or ends the session, and closes every descriptor.

Run it as ``python packages/vsock/fuzz/fuzz_frontend.py -max_total_time=600``; libFuzzer's options work.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

with atheris.instrument_imports(include=["nitro_vsock"]):
    from hostile_frontend import hostile_frontend

if __name__ == "__main__":
    atheris.Setup(sys.argv, hostile_frontend)
    atheris.Fuzz()
