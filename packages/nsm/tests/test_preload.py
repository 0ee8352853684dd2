"""Programs that know /dev/nsm only, with the library before them and `nsm serve` behind it."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nitro_nsm import HostError, Nsm, NsmConfig, Root, verify
from nitro_nsm.cli import main
from nitro_nsm.preload import cache_directory, preload_library
from nitro_nsm.testing import serving

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

CLIENT = """
import os, sys
from nitro_nsm import DeviceTransport, NsmClient
{before}
with DeviceTransport() as device:
    client = NsmClient(device)
    {do}
"""

C_CLIENT = r"""
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <errno.h>
struct raw { uint64_t request, request_bytes, reply, reply_bytes; };
int main(void) {
    char reply[16384]; char request[5000] = "\x69GetRandom";
    int fd = open("/dev/nsm", O_RDWR);
    if (fd < 0) { printf("open %d\n", errno); return 0; }
    struct raw raw = {(uintptr_t)request, 10, (uintptr_t)reply, 0x3000};
    int done = ioctl(fd, _IOWR(0x0A, 0, struct raw), &raw);
    printf("%d %d\n", done, (int)raw.reply_bytes);
    raw.reply_bytes = 30; done = ioctl(fd, _IOWR(0x0A, 0, struct raw), &raw);
    printf("%d %d\n", done, (int)raw.reply_bytes);
    raw.request_bytes = 0x1001; done = ioctl(fd, _IOWR(0x0A, 0, struct raw), &raw);
    printf("%d %d\n", done, errno == EMSGSIZE);
    raw.request_bytes = 10; raw.reply = 0; done = ioctl(fd, _IOWR(0x0A, 0, struct raw), &raw);
    printf("%d %d\n", done, errno == EFAULT);
    int other = open("/dev/null", O_RDWR); done = ioctl(other, _IOWR(0x0A, 0, struct raw), &raw);
    printf("%d %d\n", done, errno == ENOTTY);
    return 0;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preload_library(tmp_path_factory.mktemp("cache"))


def run(command: list[str], library: Path, path: Path) -> str:
    environment = os.environ | {"LD_PRELOAD": str(library), "NITRO_NSM_SOCKET": str(path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(library: Path, path: Path, do: str, before: str = "") -> str:
    return run([sys.executable, "-c", CLIENT.format(do=do, before=before)], library, path)


@pytest.fixture
def nsm(root: Root) -> Nsm:
    return Nsm(NsmConfig(pcrs={0: b"\1" * 48}), root=root)


@needs_compiler
def test_a_program_attests_over_the_device(library: Path, nsm: Nsm, root: Root, tmp_path: Path) -> None:
    with serving(nsm, tmp_path / "nsm.sock") as path:
        said = python(library, path, "print(client.attest(nonce=b'fresh').hex())")

    verify(bytes.fromhex(said), at=datetime.now(UTC), root=root.trust, nonce=b"fresh")


@needs_compiler
def test_a_program_in_c(library: Path, nsm: Nsm, tmp_path: Path) -> None:
    program = tmp_path / "client"
    (tmp_path / "client.c").write_text(C_CLIENT)
    flags = ["-O2", "-D_FORTIFY_SOURCE=2", "-D_FILE_OFFSET_BITS=64"]
    subprocess.run(["cc", *flags, str(tmp_path / "client.c"), "-o", str(program)], check=True)

    with serving(nsm, tmp_path / "nsm.sock") as path:
        said = run([str(program)], library, path)
    without_server = run([str(program)], library, path)

    assert said.splitlines() == ["0 278", "0 30", "-1 1", "-1 1", "-1 1"]
    assert without_server == "open 2\n"


@needs_compiler
def test_threads_and_children_get_their_own_replies(library: Path, nsm: Nsm, tmp_path: Path) -> None:
    many = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "    child = os.fork()\n"
        "    ask = lambda i: (i, client.describe_pcr(i % 32).locked)\n"
        "    with ThreadPoolExecutor(8) as pool: found = list(pool.map(ask, range(400)))\n"
        "    assert all(locked == (i % 32 < 16) for i, locked in found)\n"
        "    if child: assert os.waitpid(child, 0)[1] == 0; print('done')"
    )
    with serving(nsm, tmp_path / "nsm.sock") as path:
        assert python(library, path, many) == "done\n"


@needs_compiler
def test_the_socket_may_be_named_in_another_way_than_the_server_names_it(
    library: Path, nsm: Nsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(nsm, Path("nsm.sock")):
        assert python(library, tmp_path / "nsm.sock", "print(len(client.get_random()))") == "256\n"


@needs_compiler
def test_a_duplicated_and_inherited_descriptor_is_the_device_too(
    library: Path, nsm: Nsm, tmp_path: Path
) -> None:
    inherits = (
        "import nitro_nsm.client as c, subprocess\n"
        "    fd = os.dup(device._descriptor); os.set_inheritable(fd, True)\n"
        "    program = 'import sys; from nitro_nsm import *; d = DeviceTransport();"
        " d._descriptor = int(sys.argv[1]); print(len(NsmClient(d).get_random()))'\n"
        "    subprocess.run([sys.executable, '-c', program, str(fd)], pass_fds=[fd], check=True)"
    )
    with serving(nsm, tmp_path / "nsm.sock") as path:
        assert python(library, path, inherits) == "256\n"


@needs_compiler
def test_the_device_may_be_opened_as_a_file_that_is_read_and_written(
    library: Path, nsm: Nsm, tmp_path: Path
) -> None:
    """As aws-nsm-interface opens it."""
    opens = (
        "import builtins\n"
        "    with builtins.open('/dev/nsm', 'r+') as file:\n"
        "        device._descriptor, fd = file.fileno(), device._descriptor\n"
        "        print(len(client.get_random())); device._descriptor = fd"
    )
    with serving(nsm, tmp_path / "nsm.sock") as path:
        assert python(library, path, opens) == "256\n"


@needs_compiler
def test_other_files_are_left_alone(library: Path, tmp_path: Path) -> None:
    program = (
        "import os, sys; p = sys.argv[1]; open(p, 'w').write('x'); os.chmod(p, 0o600); print(open(p).read());"
        "f = os.open(p + '2', os.O_CREAT | os.O_RDWR, 0o640); print(oct(os.fstat(f).st_mode & 0o777))"
    )

    said = run([sys.executable, "-c", program, str(tmp_path / "file")], library, tmp_path / "nowhere")

    assert said.splitlines()[0] == "x"
    assert said.splitlines()[1] == oct(0o640)


@needs_compiler
def test_the_compiled_library_is_kept(library: Path) -> None:
    before = library.stat().st_mtime_ns

    assert preload_library(library.parent) == library
    assert library.stat().st_mtime_ns == before
    assert list(library.parent.iterdir()) == [library]


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == Path("/home/someone/.cache/nitro-nsm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_directory() == Path("/cache/nitro-nsm")


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(HostError) as caught:
        preload_library(tmp_path)

    assert "install gcc" in caught.value.hint


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "false")

    with pytest.raises(HostError, match="false cannot compile the library"):
        preload_library(tmp_path)
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_the_command_prints_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert main(["preload"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.read_bytes().startswith(b"\x7fELF")
    assert main(["preload", "--json"]) == 0
    assert f'{{\n  "path": "{path}",\n' in capsys.readouterr().out
