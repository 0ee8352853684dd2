"""Whatever a debugger sends, the stub answers with packets and raises nothing.

Run it as ``python packages/vmm/fuzz/fuzz_gdb.py -max_total_time=600``; all of libFuzzer's options work.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "gdb"))

with atheris.instrument_imports(include=["nitro_vmm.gdb"]):
    import fake_target


def test_one_input(data: bytes) -> None:
    """What libFuzzer calls: a byte for the size of the pieces, and what comes."""
    provider = atheris.FuzzedDataProvider(data)
    sizes = [provider.ConsumeIntInRange(0, 64) for _ in range(8)]
    fake_target.check_any_bytes(provider.ConsumeBytes(len(data)), sizes)


if __name__ == "__main__":
    corpus = Path(__file__).resolve().parents[3] / ".cache" / "fuzz" / "vmm-gdb"
    corpus.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], "-max_len=1600", *sys.argv[1:], str(corpus)], test_one_input)
    atheris.Fuzz()
