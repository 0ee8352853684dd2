"""Any bytes are a saved machine's description that fits its file, or a StateError, and nothing else.

The first byte chooses how deep the rest gets: as a whole file, as a description, or as a real description in
which the bytes stand for something else. Run it as
``python packages/vmm/fuzz/fuzz_snapshot.py -max_total_time=600``; all of libFuzzer's options work.
"""

import sys
from contextlib import suppress
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "snapshot")]

with atheris.instrument_imports(include=["nitro_vmm.snapshot", "nitro_vmm.devices"]):
    from nitro_vmm.accel import VmState
    from nitro_vmm.accel.unicorn.vm import UnicornState
    from nitro_vmm.errors import StateError
    from nitro_vmm.snapshot.codec import decode, encode
    from nitro_vmm.snapshot.layout import Description, Header, check_pages, parse_header, pieces
    from states import description

WHOLE = encode(description())
EXTENDED: dict[type, type] = {VmState: UnicornState}


def test_one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    kind, rest = data[:1], data[1:]
    with suppress(StateError):
        if kind == b"h":
            parse_header(rest, file_bytes=len(rest))
            return
        if kind == b"r":
            place = int.from_bytes(rest[:2], "little") % len(WHOLE)
            rest = WHOLE[:place] + rest[2:] + WHOLE[place + len(rest) - 2 :]
        found = decode(rest, Description, extended=EXTENDED)
        check_pages(Header(b"", 0, 0, sum(count for _, count in found.extents) << 12), found)
        pieces(found)


if __name__ == "__main__":
    corpus = Path(__file__).resolve().parents[3] / ".cache" / "fuzz" / "vmm-snapshot"
    corpus.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], "-max_len=4000", *sys.argv[1:], str(corpus)], test_one_input)
    atheris.Fuzz()
