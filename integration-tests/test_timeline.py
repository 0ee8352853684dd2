"""The timeline's page in a browser that people have: Debian's Chromium, without a window."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("nitro_vmm.cli", reason="there is no `vmm run`; install nitro-vmm")

from nitro_vmm.enclave.timeline import Moment
from nitro_vmm.enclave.timeline_page import page

HOSTILE = "</title><script>document.title=1</script><img src=http://192.0.2.1/x>"
WIDTH, HEIGHT = 900, 700


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("launch", "guest starts", "kernel: starts init", "heartbeat", HOSTILE, "end")
    moments = [Moment(name, number / 3, HOSTILE) for number, name in enumerate(names)]
    path = tmp_path_factory.mktemp("page") / "boot.html"
    path.write_text(page(moments, {"image": "hello.eif", "end": HOSTILE}, {"said": HOSTILE}))
    return path


def browse(file: Path, *options: str) -> str:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no browser; Debian's package is chromium")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={file.parent}/profile",
    ]
    command += [f"--window-size={WIDTH},{HEIGHT}", *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_browser_finds_all_phases_and_moments_and_runs_nothing(file: Path) -> None:
    tree = browse(file, "--dump-dom")

    assert "<title>Boot of hello.eif</title>" in tree
    assert tree.count('class="phase"') == 4
    assert tree.count("<circle") == 6
    assert len(re.findall(r"<tr><td", tree)) == 6
    assert "<img" not in tree
    assert tree.count("<script") == 1


def test_the_browser_draws_it(file: Path) -> None:
    picture = file.with_name("boot.png")

    browse(file, f"--screenshot={picture}")

    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack_from(">II", data, 16) == (WIDTH, HEIGHT)
    assert len(data) > 10_000, "an empty page compresses to less"
