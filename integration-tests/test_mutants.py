"""The mutants that are made of a program: one token each, and only where something is run."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("coverage")

import mutants

PROGRAM = '''
"""2 < 3"""
LIMIT: Final[int] = 0x1F

def place(at: int | None, *, size: Literal[4] = 4) -> bytes | None:
    if at is not None and (at) <= LIMIT:
        at += 1
    return None if not at else bytes(size - 1)
'''


def changes(path: Path, program: str) -> list[tuple[int, str]]:
    path.write_text(program)
    return sorted((each.line, each.change) for each in mutants.mutants_of(path, path.name))


def test_operators_turn_and_numbers_move_but_not_in_annotations_and_texts(tmp_path: Path) -> None:
    assert changes(tmp_path / "program.py", PROGRAM) == [
        (3, "0x1F -> 0x20"),
        (5, "4 -> 5"),
        (6, "<= -> <"),
        (6, "and -> or"),
        (6, "not -> nothing"),
        (7, "+= -> -="),
        (7, "1 -> 2"),
        (8, "- -> +"),
        (8, "1 -> 2"),
        (8, "not -> nothing"),
    ]


def test_every_mutant_is_a_program_that_differs_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    before = PROGRAM.splitlines()

    for mutant in mutants.mutants_of(path, path.name):
        after = mutant.apply(PROGRAM)

        compile(after, path, "exec")
        differing = [
            number for number, line in enumerate(after.splitlines(), 1) if line != before[number - 1]
        ]
        assert differing == [mutant.line]


def test_each_mutant_that_is_left_out_exists_and_has_a_reason() -> None:
    for file, text, change in mutants.equivalent():
        path = mutants.ROOT / file

        assert any((each.text, each.change) == (text, change) for each in mutants.mutants_of(path, file)), (
            text
        )


def test_what_a_mutant_leaves_in_the_background_is_ended() -> None:
    program = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
import mutants
mutants.adopt_orphans()
shell = subprocess.Popen(["sh", "-c", "setsid sleep 1000 & echo $!"], stdout=subprocess.PIPE, text=True)
orphan = shell.stdout.readline()
shell.wait()
mutants.end_children()
print(orphan)
"""
    tools = Path(mutants.__file__).parent

    done = subprocess.run(
        [sys.executable, "-c", program, str(tools)], capture_output=True, text=True, check=True, timeout=60
    )

    assert not Path("/proc", done.stdout.strip()).exists()
