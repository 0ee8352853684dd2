"""Any bytes are a document that verifies or a DocumentError, and nothing else.

The first byte chooses how deep the rest gets: as a whole document, as one of the certificates of a document
that is otherwise whole, or as a payload that is rightly signed. Run it as
``python packages/nsm/fuzz/fuzz_verify.py -runs=1000000``; all of libFuzzer's options work.
"""

import sys
import warnings
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

with atheris.instrument_imports(include=["nitro_nsm"]):
    import invariants


def test_one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    choice, rest = (data[0] if data else 0), data[1:]
    match choice % 6:
        case 0:
            invariants.check_document(rest)
        case 1:
            invariants.check_payload(rest)
        case position:
            invariants.check_certificate(rest, position - 2)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of the certificate parser
    corpus = Path(__file__).resolve().parents[3] / ".cache" / "fuzz" / "nsm-verify"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(invariants.document_seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], "-max_len=8000", *sys.argv[1:], str(corpus)], test_one_input)
    atheris.Fuzz()
