"""What a start costs: only what the command needs is loaded, and nothing is lost at the end."""

import argparse
import gc
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from nitro_vmm.cli import launching, main
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.cli.main import COMMANDS, parser
from vmm_command import modules_at_the_end, modules_when_the_guest_begins


@pytest.mark.parametrize("module", COMMANDS)
def test_the_table_says_which_commands_a_module_adds(module: str) -> None:
    commands = argparse.ArgumentParser().add_subparsers()

    import_module(f"nitro_vmm.cli.{module}").add(commands)

    assert tuple(commands.choices) == COMMANDS[module]


def test_a_parser_for_one_command_parses_it_as_the_whole_one_does() -> None:
    argv = ["run", "hello.eif", "--memory-mib", "128"]

    one, all_ = parser("run").parse_args(argv), parser().parse_args(argv)

    assert one.execute is all_.execute
    assert (one.eif, one.memory_mib) == (all_.eif, all_.memory_mib)


def imported(*arguments: str) -> set[str]:
    """The modules of ours that are loaded when the command has printed what it prints."""
    return {name for name in modules_at_the_end(*arguments) if name.startswith("nitro_vmm.")}


def test_a_command_does_not_load_the_others() -> None:
    assert "nitro_vmm.cli.ps" in imported("ps", "--help")
    assert not imported("ps", "--help") & {"nitro_vmm.cli.run", "nitro_vmm.cli.stop", "nitro_vmm.config"}


def test_the_version_is_that_of_the_distribution_and_loads_next_to_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nitro_vmm", "--version"], capture_output=True, text=True, check=True
    )

    assert done.stdout == f"vmm {version('nitro-vmm')}\n"
    assert not imported("--version") & {"nitro_vmm.cli.run", "nitro_vmm.cli.ps"}


def test_what_is_printed_at_the_end_is_whole_although_the_interpreter_is_not_taken_apart() -> None:
    program = (
        "import sys, threading\n"
        "from nitro_vmm.cli import program\n"
        "done = threading.Event()\n"
        "def work():\n"
        "    done.wait()\n"
        "    print('from a thread', flush=True)\n"
        "def main(argv):\n"
        "    threading.Thread(target=work).start()\n"
        "    sys.stderr.write('told')\n"
        "    done.set()\n"
        "    return 7\n"
        "sys.modules['nitro_vmm.cli.main'].main = main\n"
        "program()\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (7, "from a thread\n", "told")


def test_garbage_is_collected_again_when_no_enclave_could_be_launched(tmp_path: Path) -> None:
    assert main(["run", str(tmp_path / "nowhere.eif")]) == ExitCode.IMAGE

    assert gc.isenabled()


def test_garbage_is_collected_again_when_the_guest_runs(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    end = launching.end

    def ended() -> None:
        end()
        seen.append(gc.isenabled())

    monkeypatch.setattr(launching, "end", ended)

    assert main(["run", str(image), "--boot-timeout-s", "0.5"]) in {ExitCode.ENDED, ExitCode.BOOT_TIMEOUT}

    assert seen[0]


def test_a_guest_runs_before_the_slow_imports(image: Path) -> None:
    loaded = modules_when_the_guest_begins("run", "--quiet", "--memory-mib", "128", image)

    assert "nitro_vmm.enclave.boot" in loaded
    assert not loaded & {"trio", "pydantic", "cryptography"}
