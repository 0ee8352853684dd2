"""Change a program at random places and count what its tests do not notice: ``python tools/mutants.py eif``.

A mutant differs from the package by one token: an operator turned, or a number moved by one. Tests that pass
all the same do not say what that place should do. Places are drawn by a seed, so that runs can be repeated;
with the same seed and a larger count the first ones stay the same.

Each mutant is tested in a copy, by the tests that reach its line, and by all if it is run when a module is
imported, or by a program that a test starts. One that nobody can notice is listed with its reason in
``tools/mutants.toml``, and left out.
"""

import argparse
import ast
import ctypes
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from coverage import CoverageData

from debian import say

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = ROOT / "tools/mutants.toml"
SURVIVORS_MAX = 0.1
PR_SET_CHILD_SUBREAPER = 36
"""The share of mutants that may survive."""

TESTS_BY_NAME_MAX = 400
"""More tests than these are run by file, because a command line has an end."""

NO_SUCH_TEST = 4
"""Pytest's exit code for names that it does not find, and for a package that cannot be imported at all."""

PATIENCE = 5
"""A mutant may take so many times as long as all tests together."""

TEST_SECONDS_MAX = 120
"""A single test that takes longer hangs, because the slowest take seconds; that is noticed, too."""

SHOWN_LINES = 60
"""So much of what pytest says is shown when tests fail without a mutant."""

PYTEST = [
    *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"),
    *("-o", f"faulthandler_timeout={TEST_SECONDS_MAX}", "-o", "faulthandler_exit_on_timeout=true"),
]

TURNED = {
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "in": "not in",
    "is": "is not",
    "+": "-",
    "-": "+",
    "*": "//",
    "//": "*",
    "%": "*",
    "<<": ">>",
    ">>": "<<",
    "&": "|",
    "|": "&",
    "^": "&",
    "+=": "-=",
    "-=": "+=",
    "*=": "//=",
    "<<=": ">>=",
    ">>=": "<<=",
    "&=": "|=",
    "|=": "&=",
    "and": "or",
    "or": "and",
    "not": "",
}


@dataclass(frozen=True)
class Mutant:
    """One change."""

    file: str
    line: int
    column: int
    text: str
    """The line as it is."""
    before: str
    after: str

    @property
    def change(self) -> str:
        """What is done, for people and for the list of equivalent mutants."""
        return f"{self.before} -> {self.after or 'nothing'}"

    def apply(self, source: str) -> str:
        """The file with this change."""
        lines = source.splitlines(keepends=True)
        line = lines[self.line - 1]
        end = self.column + len(self.before)
        lines[self.line - 1] = line[: self.column] + self.after + line[end:]
        return "".join(lines)


def mutants_of(path: Path, name: str) -> Iterator[Mutant]:
    """Every change that can be made to a file.

    Args:
        path: Where it is.
        name: What to call it.
    """
    source = path.read_text()
    lines = source.splitlines()
    tokens = [
        token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.string.strip()
    ]
    following = {token.start: after.string for token, after in pairwise(tokens)}
    for start, end in places(ast.parse(source)):
        for token in tokens:
            line, column = token.start
            text = lines[line - 1]
            # Python counts columns in bytes here and in characters there.
            if not start <= token.start < end or not text.isascii():
                continue
            if token.string == "is" and following[token.start] == "not":
                continue  # the "not" is what turns
            if (after := changed(token)) is not None:
                yield Mutant(name, line, column, text.strip(), token.string, after)
                break


def changed(token: tokenize.TokenInfo) -> str | None:
    """What becomes of a token; `None` if it stays as it is."""
    if token.type == tokenize.NUMBER and re.fullmatch(r"[\d_]+|0[xX][\da-fA-F_]+", token.string):
        number = int(token.string, 0) + 1
        return f"{number:#x}" if token.string[:2].lower() == "0x" else str(number)
    return TURNED.get(token.string)


Place = tuple[tuple[int, int], tuple[int, int]]


def places(tree: ast.AST) -> Iterator[Place]:
    """Where in a file an operator or a number stands that is run: first line and column, and the end."""
    annotations = {
        id(part)
        for node in ast.walk(tree)
        for name in ("annotation", "returns")
        if (annotation := getattr(node, name, None)) is not None
        for part in ast.walk(annotation)
    }
    for node in ast.walk(tree):
        if id(node) in annotations:
            continue
        match node:
            case ast.Compare(left=left, comparators=comparators):
                for one, other in pairwise([left, *comparators]):
                    yield between(one, other)
            case ast.BoolOp(values=values):
                for one, other in pairwise(values):
                    yield between(one, other)
            case ast.BinOp(left=one, right=other) | ast.AugAssign(target=one, value=other):
                yield between(one, other)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield (node.lineno, node.col_offset), (operand.lineno, operand.col_offset)
            case ast.Constant(value=int()):
                yield (node.lineno, node.col_offset), (node.lineno, node.col_offset + 1)


def between(one: ast.expr, other: ast.expr) -> Place:
    """From the end of an operand to the beginning of the next."""
    return (one.end_lineno or 0, one.end_col_offset or 0), (other.lineno, other.col_offset)


class Copy:
    """A copy of the package and its tests, where files may be changed.

    Args:
        package: Which one: eif, nsm, vsock or vmm.
        directory: Where to put it.
    """

    def __init__(self, package: str, directory: Path) -> None:
        self._root = directory
        self._source = f"packages/{package}/src/nitro_{package}"
        self._tests = f"packages/{package}/tests"
        self._module = f"nitro_{package}"
        self._seconds = 0.0
        self._output = directory / "output"
        self._reached = CoverageData(basename=str(directory / "coverage"))
        for name in ("conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / name, directory / name)
        # All that it imports, so that nobody's edits meanwhile change what is tested.
        siblings = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("packages/*/src")]
        siblings.remove(f"packages/{package}/src")
        for name in (f"packages/{package}", *siblings, "tools", "docs"):
            shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        self._imported = os.pathsep.join(str(path) for path in directory.glob("packages/*/src"))

    def mutants(self) -> list[Mutant]:
        """All that there are, in order."""
        files = sorted((self._root / self._source).rglob("*.py"))
        return [each for path in files for each in mutants_of(path, path.relative_to(self._root).as_posix())]

    def learn(self) -> None:
        """Run all tests once, and note which lines each reaches.

        Raises:
            RuntimeError: They fail as things are.
        """
        began_s = time.monotonic()
        cover = [f"--cov={self._module}", "--cov-context=test", "--cov-report="]
        done = self._pytest([*cover, self._tests], timeout_s=None)
        if done != 0:
            last = "\n".join(self._output.read_text(errors="replace").splitlines()[-SHOWN_LINES:])
            raise RuntimeError(
                f"the tests of {self._module} fail without any change, exit code {done}:\n{last}"
            )
        self._seconds = time.monotonic() - began_s
        self._reached.read()

    def survives(self, mutant: Mutant) -> bool:
        """Whether the tests pass with it."""
        path = self._root / mutant.file
        source = path.read_text()
        path.write_text(mutant.apply(source))
        try:
            timeout_s = 30 + PATIENCE * self._seconds
            code = self._pytest(self._tests_of(mutant), timeout_s=timeout_s)
            if code == NO_SUCH_TEST:
                code = self._pytest([self._tests], timeout_s=timeout_s)
            return code == 0
        finally:
            path.write_text(source)

    def _tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that reach a line; all of them if that is not known."""
        lines = self._reached.contexts_by_lineno(str(self._root / mutant.file))
        names = {context.rpartition("|")[0] for context in lines.get(mutant.line, [])}
        if not names or "" in names:
            return self._all_files(mutant, lines)
        if len(names) > TESTS_BY_NAME_MAX:
            names = {name.partition("::")[0] for name in names}
        return sorted(names)

    def _all_files(self, mutant: Mutant, lines: dict[int, list[str]]) -> list[str]:
        """All files of tests. Those that probably notice a mutant are first, so that it is soon done.

        Args:
            mutant: What is tried.
            lines: Which tests reach which of its file's lines.
        """
        folder = Path(mutant.file).relative_to(self._source).parts[0]
        reached = Counter(context.partition("::")[0] for contexts in lines.values() for context in contexts)
        files = [
            path.relative_to(self._root).as_posix() for path in (self._root / self._tests).rglob("test_*.py")
        ]
        return sorted(
            files, key=lambda file: (-reached[file], not file.startswith(f"{self._tests}/{folder}/"), file)
        )

    def _pytest(self, arguments: list[str], *, timeout_s: float | None) -> int:
        """Run pytest; returns its exit code, and -1 if it takes too long."""
        environment = os.environ | {
            "PYTHONPATH": self._imported,
            "PYTHONDONTWRITEBYTECODE": "1",
            "COVERAGE_FILE": str(self._root / "coverage"),
        }
        with self._output.open("wb") as output:
            process = subprocess.Popen(
                [*PYTEST, *arguments],
                cwd=self._root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return -1
        finally:
            # Whatever a mutant has started goes with it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            end_children()


def adopt_orphans() -> None:
    """Become the parent of what tests leave behind, such as enclaves in the background (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children() -> None:
    """End all processes that are ours, those of `adopt_orphans` among them."""
    while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for child in map(int, children):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def equivalent(path: Path = EQUIVALENT) -> set[tuple[str, str, str]]:
    """File, line and change of the mutants that nobody can notice.

    Args:
        path: The list, of which each entry has a reason.
    """
    entries = tomllib.loads(path.read_text()).get("equivalent", [])
    return {(each["file"], each["text"], each["change"]) for each in entries if each["reason"]}


def main() -> int:
    """Try some mutants; 1 if too many survive."""
    parser = argparse.ArgumentParser(description="Count what a package's tests do not notice.")
    parser.add_argument("package", choices=sorted(path.parent.name for path in ROOT.glob("packages/*/src")))
    parser.add_argument("--count", type=int, default=40, help="how many mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    options = parser.parse_args()
    adopt_orphans()
    # Tests send these signals, and a shell may have had us ignore them, which what we start would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    known = equivalent()
    # What tests have started may still write while it is removed.
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as directory:
        copy = Copy(options.package, Path(directory).resolve())
        copy.learn()
        every = copy.mutants()
        order = random.Random(options.seed).sample(every, len(every))  # noqa: S311 - no secret
        chosen = [each for each in order if (each.file, each.text, each.change) not in known][: options.count]
        survivors = []
        for number, mutant in enumerate(chosen, 1):
            survived = copy.survives(mutant)
            if survived:
                survivors.append(mutant)
            mark = "survives" if survived else "noticed"
            say(f"{number}/{len(chosen)} {mark}: {mutant.file}:{mutant.line}: {mutant.change}: {mutant.text}")
    if options.json:
        report = {
            "package": options.package,
            "seed": options.seed,
            "possible": len(every),
            "tried": len(chosen),
            "survivors": [asdict(each) | {"change": each.change} for each in survivors],
        }
        print(json.dumps(report, indent=2))
    else:
        print(f"{len(survivors)} of {len(chosen)} mutants survive; {len(every)} are possible")
    return 1 if len(survivors) > SURVIVORS_MAX * len(chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
