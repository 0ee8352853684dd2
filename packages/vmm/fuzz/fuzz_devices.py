"""Whatever a guest writes to its devices and its RAM, no device raises.

Run it as ``python packages/vmm/fuzz/fuzz_devices.py -max_total_time=600``; all of libFuzzer's options work.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "devices"))

with atheris.instrument_imports(include=["nitro_vmm.devices"]):
    import wired_devices


def test_one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    wired_devices.check(data)


if __name__ == "__main__":
    corpus = Path(__file__).resolve().parents[3] / ".cache" / "fuzz" / "vmm-devices"
    corpus.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], "-max_len=1600", *sys.argv[1:], str(corpus)], test_one_input)
    atheris.Fuzz()
