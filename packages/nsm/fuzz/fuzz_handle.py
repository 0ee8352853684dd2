"""Any bytes get a reply from a module, and an error changes nothing.

Run it as ``python packages/nsm/fuzz/fuzz_handle.py -runs=1000000``; all of libFuzzer's options work.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

with atheris.instrument_imports(include=["nitro_nsm"]):
    import invariants

MODULE = invariants.RequestChecker()


def test_one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    MODULE.check(data)


if __name__ == "__main__":
    corpus = Path(__file__).resolve().parents[3] / ".cache" / "fuzz" / "nsm-handle"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(invariants.request_seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], "-max_len=4200", *sys.argv[1:], str(corpus)], test_one_input)
    atheris.Fuzz()
