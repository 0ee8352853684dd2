"""The manual pages: whole, well-formed, and with all that the commands can do."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("nitro_vmm.cli", reason="a command is missing; install nitro-vmm")

import man_pages
from nitro_vmm.cli.main import parser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return man_pages.write(tmp_path_factory.mktemp("pages"))


def test_every_command_has_a_page_of_sections_and_balanced_blocks(pages: list[Path]) -> None:
    assert [path.name for path in pages] == [
        *("vmm.1", "nitro-cli.1", "eif.1", "nsm.1", "vhost-user-vsock.1", "vsock-proxy.1"),
    ]
    for path in pages:
        text = path.read_text()
        headings = re.findall(r'^\.SH "?(.*?)"?$', text, flags=re.MULTILINE)
        assert headings[:4] == ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"], path
        assert headings[-1] == "SEE ALSO", path
        assert text.startswith(".TH "), path
        assert text.count("\n.nf\n") == text.count("\n.fi\n"), path
        requests = re.findall(r"^\.(\w+)", text, flags=re.MULTILINE)
        assert set(requests) <= {"TH", "SH", "SS", "TP", "PP", "nf", "fi", "sp"}, path


def test_the_page_of_vmm_has_every_command_and_every_option(pages: list[Path]) -> None:
    text = pages[0].read_text().replace("\\-", "-")

    (commands,) = [action for action in parser()._actions if action.metavar == "COMMAND"]  # noqa: SLF001
    assert isinstance(commands.choices, dict)
    for name, command in commands.choices.items():
        assert f'.SH "VMM {name.upper()}"' in text
        for action in command._actions:  # noqa: SLF001
            if action.help != "==SUPPRESS==" and not action.choices:
                assert all(option in text for option in action.option_strings)


def test_what_could_be_a_request_of_roff_is_text() -> None:
    assert man_pages.escaped(".TH x\n'y\\z -q") == "\\&.TH x\n\\&'y\\ez \\-q"


@pytest.mark.parametrize("lint", [("mandoc", "-Tlint", "-Wwarning"), ("man", "--warnings", "-l", "-Tutf8")])
def test_the_system_finds_no_fault(pages: list[Path], lint: tuple[str, ...]) -> None:
    if shutil.which(lint[0]) is None:
        pytest.skip(f"there is no {lint[0]}; Debian's packages are mandoc and man-db")

    done = subprocess.run([*lint, *pages], capture_output=True, text=True, check=False)

    complaints = done.stdout if lint[0] == "mandoc" else done.stderr
    assert complaints == ""
