"""The package by itself: what it brings along, what it offers, and how it is imported."""

import ast
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import nitro_nsm

SOURCES = Path(nitro_nsm.__file__).parent


def test_it_brings_neither_a_machine_nor_a_loop() -> None:
    required = [line for line in requires("nitro-nsm") or [] if "extra ==" not in line]

    names = sorted(line.split(">")[0].split("<")[0] for line in required)
    assert names == ["cbor2", "cryptography", "pydantic"]


def test_it_imports_none_of_its_neighbours() -> None:
    imported = {
        name.split(".")[0]
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    outside = {name for name in imported if name not in sys.stdlib_module_names}

    extras = {"shtab", "yaml", "botocore", "h11", "moto"}
    assert outside == {"nitro_nsm", "cbor2", "cryptography", "pydantic"} | extras


def test_every_public_name_is_there_and_documented() -> None:
    for name in nitro_nsm.__all__:
        found = getattr(nitro_nsm, name)
        assert isinstance(found, int) or found.__doc__
    assert not hasattr(nitro_nsm, "nothing")


def test_importing_it_is_light() -> None:
    program = "import sys, nitro_nsm; print('cryptography' in sys.modules, 'pydantic' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False False\n"
