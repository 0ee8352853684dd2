"""The ways in which others run this: container image, GitHub Action, systemd units."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path, PurePath
from typing import Any

import pytest
import yaml

import images
from nitro_eif import BuildMetadata, Contents, Metadata, write_eif
from nitro_vmm.cli.main import parser
from nitro_vmm.testing import tiny_kernel
from nitro_vsock import vsock_proxy

ROOT = images.ROOT
CONTAINERFILE = (ROOT / "Containerfile").read_text()
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
HOW_TO = ROOT / "docs" / "how-to"
PROGRAMS = ("eif", "nsm", "vhost-user-vsock", "vmm", "nitro-cli", "vsock-proxy")


def fenced(page: str, language: str) -> list[str]:
    text = (HOW_TO / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# The container image.


def instructions(name: str) -> list[str]:
    whole = CONTAINERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", whole, re.MULTILINE)


def test_what_the_containerfile_copies_is_in_the_context() -> None:
    sources = [words.split()[0] for words in instructions("COPY") if not words.startswith("--from")]

    assert sources == [f"packages/{name}" for name in ("eif", "nsm", "vsock", "vmm")]
    assert all((ROOT / source / "pyproject.toml").is_file() for source in sources)


def test_the_context_has_all_that_a_package_is_made_of_and_nothing_that_was_built() -> None:
    _, everything, packages, *ignored = (ROOT / ".dockerignore").read_text().splitlines()
    files = [
        path.relative_to(ROOT)
        for part in ("src", "init", "native")
        for folder in ROOT.glob(f"packages/*/{part}")
        for path in folder.rglob("*")
        if path.is_file()
    ]

    left_out = {
        path
        for path in files
        if any(PurePath(place).match(pattern) for pattern in ignored for place in (path, *path.parents))
    }

    assert (everything, packages) == ("*", "!packages")
    assert {path.suffix or path.name for path in left_out} <= {".pyc", ".so", "init-x86_64", "init-aarch64"}
    assert PurePath("packages/vmm/src/nitro_vmm/starter/tests/test_app.py.in") in {*files} - left_out


def test_what_the_containerfile_installs_is_what_it_copied() -> None:
    copied = [words.split()[1] for words in instructions("COPY") if not words.startswith("--from")]
    (install,) = [words for words in instructions("RUN") if "pip install" in words]

    assert shlex.split(install)[-4:] == copied
    assert instructions("USER") == ["1000:1000"]
    assert instructions("ENTRYPOINT") == ['["vmm"]']


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_that_pages_speak_of_are_installed(program: str) -> None:
    assert os.access(images.command(program), os.X_OK)


def test_what_the_page_runs_in_containers_is_understood() -> None:
    commands = [shlex.split(line) for block in fenced("containers.md", "sh") for line in block.splitlines()]
    (pod,) = [
        container
        for document in map(yaml.safe_load, fenced("containers.md", "yaml"))
        for container in document["spec"]["containers"]
        if "args" in container
    ]
    of_vmm = [
        words[words.index("nitro-vmm") + 1 :]
        for words in commands
        if words[1] == "run" and "--entrypoint" not in words
    ]

    assert len(of_vmm) == 5
    for arguments in [*of_vmm, pod["args"]]:
        parser().parse_args(arguments)


# The action.


def step(name: str) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = [each for each in ACTION["runs"]["steps"] if each["id"] == name]
    return found


def run_step(
    name: str, directory: Path, inputs: dict[str, str]
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run a step as a runner would; returns what it wrote for steps that follow, too."""
    defaults = {each: about.get("default", "") for each, about in ACTION["inputs"].items()}
    values = {f"inputs.{each}": value for each, value in (defaults | inputs).items()}
    values["github.action_path"] = str(ROOT)

    def evaluate(text: str) -> str:
        return re.sub(r"\$\{\{ (\S+) \}\}", lambda match: values[match[1]], text)

    output = directory / "output"
    output.touch()
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step(name)["run"]],
        cwd=directory,
        env={
            **os.environ,
            **{each: evaluate(text) for each, text in step(name)["env"].items()},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_OUTPUT": str(output),
            "XDG_RUNTIME_DIR": str(directory),
            "XDG_DATA_HOME": str(directory / "data"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done, output.read_text()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image that prints "hi", waits for ever, and sends no heartbeat.

    mov dx, 0x3f8; mov al, "h"; out dx, al; mov al, "i"; out dx, al; sti; hlt; jmp to hlt.
    """
    metadata = Metadata(image_name="idle", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00")).pack()
    kernel = tiny_kernel(bytes.fromhex("66baf803b068eeb069eefbf4ebfd"))
    path = tmp_path / "idle.eif"
    write_eif(Contents(kernel=kernel, cmdline=b"", ramdisks=[b"r"], metadata=metadata), path)
    return path


def end(directory: Path, name: str) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}
    subprocess.run(
        [images.command("vmm"), "terminate", name], check=True, env=environment, capture_output=True
    )


def test_the_action_boots_an_image_and_says_which(image: Path, tmp_path: Path) -> None:
    inputs = {"eif": str(image), "options": "--memory-mib 64 --debug-mode", "boot-timeout-s": "0"}

    done, output = run_step("boot", tmp_path, inputs)
    end(tmp_path, "enclave")

    assert done.returncode == 0, done.stderr
    assert output.startswith("name=enclave\ndescription<<END\n{")
    assert '"Mode": "debug"' in output


def test_the_action_fails_with_the_messages_of_an_image_that_does_not_boot(
    image: Path, tmp_path: Path
) -> None:
    inputs = {"eif": str(image), "options": "--memory-mib 64 --boot-timeout-s 3600", "boot-timeout-s": "1"}

    done, _ = run_step("boot", tmp_path, inputs)
    end(tmp_path, "enclave")

    assert done.returncode == 1
    assert "::error::the enclave enclave sent no heartbeat" in done.stdout
    assert "hi" in done.stdout, "the console is shown"


def test_the_actions_outputs_are_its_steps() -> None:
    for output in ACTION["outputs"].values():
        (reference,) = re.findall(r"\$\{\{ steps\.(\w+)\.outputs\.(\w+) \}\}", output["value"])
        assert f"{reference[1]}" in step(reference[0])["run"]
    install = step("install")["run"]
    assert "/packages/{eif,nsm,vsock,vmm}" in install


def test_the_pages_workflow_gives_inputs_that_there_are() -> None:
    (workflow,) = map(yaml.safe_load, fenced("github.md", "yaml"))
    (used,) = [each for each in workflow["jobs"]["test"]["steps"] if each.get("id") == "enclave"]

    assert set(used["with"]) <= set(ACTION["inputs"])
    parser().parse_args(["run", "app.eif", *shlex.split(used["with"]["options"])])


# The units.


def test_the_units_start_what_there_is() -> None:
    units = fenced("systemd.md", "ini")
    commands = [re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0] for unit in units]
    enclave, proxy, daemon = (shlex.split(command.replace("%i", "hello")) for command in commands)

    parser().parse_args(enclave[1:])
    vsock_proxy.parser().parse_args(proxy[1:])
    assert daemon[0] == "vhost-user-vsock"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd to ask")
def test_systemd_has_no_complaint_about_the_units(tmp_path: Path) -> None:
    text = (HOW_TO / "systemd.md").read_text()
    names = re.findall(r"`[^`\n]*/([\w@-]+\.service)`", text)
    programs = Path(sys.executable).parent
    for name, unit in zip(names, fenced("systemd.md", "ini"), strict=True):
        unit = re.sub(r"^ExecStart=", f"ExecStart={programs}/", unit, flags=re.MULTILINE)  # noqa: PLW2901
        (tmp_path / name).write_text(unit)

    # Verified as the system's: their user's directories are not there without a login.
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            *[tmp_path / name.replace("@", "@hello") for name in names],
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert complaints == []
