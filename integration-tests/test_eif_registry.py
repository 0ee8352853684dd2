"""From a real registry to a running enclave: pull a real image, build, boot, and look from inside."""

import gzip
import hashlib
import http.client
import json
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

import images
from nitro_eif import Architecture, Eif, Image, RegistryError, open_image, read_ramdisk, tree_of
from nitro_eif.cli import main
from nitro_eif.testing import tar_member, tar_of

ROOT = Path(__file__).resolve().parent.parent

OCI = "application/vnd.oci.image"
START_TIMEOUT_S = 30
BOOT_TIMEOUT_S = 60
SCRIPT = b"""#!/bin/sh
/bin/busybox echo "arguments: [$1] [$2]"
/bin/busybox echo "environment: $GREETING in $HOME"
/bin/busybox echo "directory: $(/bin/busybox pwd)"
/bin/busybox echo "user: $(/bin/busybox id -u):$(/bin/busybox id -g) $(/bin/busybox id -G)"
"""


class Registry:
    """A `docker-registry` of its own, on a free port, with its storage in a directory."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{free.getsockname()[1]}"
        config = directory / "config.yml"
        storage = {"filesystem": {"rootdirectory": str(directory / "storage")}}
        config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": self.host}}))
        self._log = (directory / "registry.log").open("wb")
        command = ["docker-registry", "serve", str(config)]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def wait(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.request("GET", "/v2/")
            except OSError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._log.close()

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
        with closing(http.client.HTTPConnection(self.host, timeout=START_TIMEOUT_S)) as connection:
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, fields)
            response = connection.getresponse()
            response.read()
        assert response.status < 300, (method, path, response.status)
        return response

    def push(self, name: str, tag: str, layers: list[bytes], config: dict[str, object]) -> None:
        """Upload an image (distribution-spec, "Push")."""
        diff_ids = [digest(layer) for layer in layers]
        text = {"architecture": "amd64", "os": "linux", "config": config}
        blob = json.dumps(text | {"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.upload(name, blob, f"{OCI}.config.v1+json"),
            "layers": [self.upload(name, gzip.compress(x), f"{OCI}.layer.v1.tar+gzip") for x in layers],
        }
        body = json.dumps(manifest).encode()
        self.request("PUT", f"/v2/{name}/manifests/{tag}", body, Content_Type=f"{OCI}.manifest.v1+json")

    def upload(self, name: str, blob: bytes, media_type: str) -> dict[str, object]:
        place = self.request("POST", f"/v2/{name}/blobs/uploads/").headers["Location"]
        path = place.partition(self.host)[2] or place
        self.request("PUT", f"{path}&digest={digest(blob)}", blob, Content_Type="application/octet-stream")
        return {"mediaType": media_type, "digest": digest(blob), "size": len(blob)}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(scope="module")
def busybox() -> bytes:
    path = shutil.which("busybox")
    if path is None or b"/lib64/ld-linux-x86-64" in (program := Path(path).read_bytes()):
        pytest.skip("no static busybox; Debian's package is busybox-static")
    return program


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, busybox: bytes) -> Iterator[Registry]:
    if shutil.which("docker-registry") is None:
        pytest.skip("no docker-registry; Debian's package is docker-registry")
    server = Registry(tmp_path_factory.mktemp("registry"))
    try:
        server.wait()
        push(server, busybox, "1.0", SCRIPT)
        push(server, busybox, "1.1", SCRIPT + b"# changed\n")
        yield server
    finally:
        server.close()


def push(server: Registry, busybox: bytes, tag: str, script: bytes) -> None:
    base = [
        (tar_member("bin", kind=tarfile.DIRTYPE, mode=0o755), b""),
        (tar_member("bin/busybox", mode=0o755), busybox),
        (tar_member("bin/sh", kind=tarfile.LNKTYPE, target="bin/busybox"), b""),
        (tar_member("etc/passwd"), b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"),
        (tar_member("etc/group"), b"app:x:1001:\nvideo:x:44:app\n"),
        (tar_member("removed"), b"by the next layer"),
    ]
    upper = [(tar_member(".wh.removed"), b""), (tar_member("srv/app/start", mode=0o755), script)]
    config: dict[str, object] = {
        "Entrypoint": ["./start"],
        "Cmd": ["--serve", "two words"],
        "Env": ["GREETING=hello"],
        "WorkingDir": "/srv/app",
        "User": "app",
    }
    server.push("team/app", tag, [tar_of(base), tar_of(upper)], config)


def pull(registry: Registry, version: str, stack: ExitStack) -> Image:
    return open_image(f"docker://{registry.host}/team/app{version}", Architecture.X86_64, stack)


def test_an_image_is_pulled_by_tag_and_by_digest(registry: Registry) -> None:
    name = registry.request("GET", "/v2/team/app/manifests/1.0", Accept=f"{OCI}.manifest.v1+json")
    with ExitStack() as stack:
        for version in (":1.0", f"@{name.headers['Docker-Content-Digest']}"):
            tree = pull(registry, version, stack).unpack(stack)
            assert bytes(tree["srv/app/start"].data) == SCRIPT
            assert tree["bin/sh"] is tree["bin/busybox"]
            assert "removed" not in tree
        with pytest.raises(RegistryError, match="no such image"):
            pull(registry, ":none", stack)


def test_an_image_as_skopeo_pushes_it_is_pulled(registry: Registry, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("no skopeo; Debian's package is skopeo")
    source, target = f"docker://{registry.host}/team/app:1.0", f"docker://{registry.host}/team/copy:1.0"
    copy = [
        "skopeo",
        "copy",
        "--quiet",
        "--insecure-policy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
    ]
    subprocess.run([*copy, "--format", "v2s2", source, target], check=True)
    archives = {
        "oci-archive": "oci.tar:copy:1.0",
        "docker-archive": "docker.tar:team/copy:1.0",
        "oci": "layout:1.0",
    }
    for kind, name in archives.items():
        subprocess.run([*copy, target, f"{kind}:{tmp_path / name}"], check=True)
    with ExitStack() as stack:
        trees = []
        for place in (
            target,
            str(tmp_path / "oci.tar"),
            str(tmp_path / "docker.tar"),
            f"oci:{tmp_path}/layout",
        ):
            image = open_image(place, Architecture.X86_64, stack)
            assert (image.config.user, image.config.cmd) == ("app", ("--serve", "two words"))
            trees.append({path: bytes(node.data) for path, node in image.unpack(stack).items()})
        assert trees == [trees[0]] * 4


def build(registry: Registry, tag: str, output: Path) -> Path:
    source = [
        "--image",
        f"{registry.host}/team/app:{tag}",
        "--kernel",
        str(kernel()),
        "--build-time",
        "2026-01-31T12:00:00Z",
    ]
    assert main(["build", *source, "--output", str(output)]) == 0
    return output


def kernel() -> Path:
    try:
        return images.nitro_kernel()
    except images.ImageError as error:
        pytest.skip(str(error))


def test_diff_names_the_file_of_the_layer_that_differs(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = build(registry, "1.0", tmp_path / "1.eif"), build(registry, "1.1", tmp_path / "2.eif")
    again = build(registry, "1.0", tmp_path / "again.eif")
    assert again.read_bytes() == first.read_bytes()
    capsys.readouterr()

    assert main(["diff", "--json", str(first), str(second)]) == 1

    answer = json.loads(capsys.readouterr().out)
    changed = [difference for difference in answer["Differences"] if difference["PCRs"]]
    assert [(entry["Path"], entry["PCRs"]) for entry in changed] == [
        ("rootfs/srv/app/start", ["PCR0", "PCR2"])
    ]
    with Eif.open(first) as eif:
        assert "rootfs/removed" not in tree_of(read_ramdisk(eif.ramdisks[1]))


def test_the_application_sees_its_arguments_environment_directory_and_user(
    registry: Registry, tmp_path: Path
) -> None:
    pytest.importorskip("nitro_vmm.cli", reason="needs the machine, nitro-vmm")
    image = build(registry, "1.0", tmp_path / "app.eif")

    done = subprocess.run(
        [images.command("vmm"), "run", "--console", image, "--vsock-path", tmp_path / "vsock"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=BOOT_TIMEOUT_S,
        check=False,
    )

    console = done.stdout.decode(errors="replace").replace("\r", "")
    print(console, done.stderr.decode(errors="replace"))
    assert "arguments: [--serve] [two words]\n" in console
    assert "environment: hello in /home/app\n" in console
    assert "directory: /srv/app\n" in console
    assert "user: 1000:1001 1001 44\n" in console
