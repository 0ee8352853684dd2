"""``eif diff``: what differs between two images, and which registers change because of it."""

import argparse

from nitro_eif.commands.options import add_json
from nitro_eif.commands.terminal import Meter, print_json, printable, table
from nitro_eif.comparison import Difference, compare
from nitro_eif.image.measure import measure_and_checksum
from nitro_eif.image.reader import Eif

_PARTS = ("PCR0", "PCR1", "PCR2", "PCR8")

EXAMPLES = ("eif diff yesterday.eif today.eif",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to its parser."""
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Compare; 0 if nothing differs, 1 if something does."""
    with Eif.open(options.a) as a, Eif.open(options.b) as b, Meter("Measuring") as meter:
        registers = [measure_and_checksum(eif, progress=meter).measurements.as_json() for eif in (a, b)]
        differences = list(compare(a, b))
        changed = [name for name in _PARTS if registers[0].get(name) != registers[1].get(name)]
        same = not differences and not changed
    if options.json:
        print_json(
            {
                "Same": same,
                "PCRs": {name: [values.get(name) for values in registers] for name in changed},
                "Differences": [difference.as_json() for difference in differences],
            }
        )
    elif same:
        print("The images are the same.")
    else:
        _print(differences, changed, registers)
    return 0 if same else 1


def _print(differences: list[Difference], changed: list[str], registers: list[dict[str, str]]) -> None:
    for difference in differences:
        path = f"{printable(difference.path)}: " if difference.path is not None else ""
        print(f"{difference.part}: {path}{printable(difference.what)}")
    if not changed:
        print("No register changes: the images measure the same.")
        return
    print("Registers that change")
    rows = []
    for name in changed:
        reasons = sorted({difference.part for difference in differences if name in difference.pcrs})
        first, second = (values.get(name, "none")[:16] for values in registers)
        rows.append(
            (name, f"{first}... became {second}...", f"because of {', '.join(reasons)}" if reasons else "")
        )
    print(table(rows))
