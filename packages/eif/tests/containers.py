"""Container images, made on the spot in each form in which they travel."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from nitro_eif.filesystem.compression import zstd_module
from nitro_eif.testing import tar_member, tar_of

OCI = "application/vnd.oci.image"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Container:
    """An image of two layers, if none are given; blobs by digest, and the manifest that names them."""

    def __init__(
        self,
        compress: str = "gzip",
        architecture: str = "amd64",
        layers: list[bytes] | None = None,
        **config: object,
    ) -> None:
        self.layers = layers or [
            tar_of(
                [
                    (tar_member("bin", kind=tarfile.DIRTYPE, mode=0o755), b""),
                    (tar_member("bin/app", mode=0o755), b"the application"),
                    (
                        tar_member("etc/passwd"),
                        b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:\n",
                    ),
                    (tar_member("etc/group"), b"app:x:1000:\nwheel:x:10:root,app\nvideo:x:44:app\n"),
                    (tar_member("old"), b"old"),
                ]
            ),
            tar_of([(tar_member(".wh.old"), b""), (tar_member("new"), b"new")]),
        ]
        pack: Any = {"gzip": gzip.compress, "zstd": zstd, "none": bytes}[compress]
        packed = [pack(layer) for layer in self.layers]
        defaults = {
            "Entrypoint": ["/bin/app"],
            "Cmd": ["--serve"],
            "Env": ["A=1"],
            "WorkingDir": "/srv",
            "User": "app",
        }
        self.config = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": defaults | config,
                "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in self.layers]},
            }
        ).encode()
        suffix = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}[compress]
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{OCI}.manifest.v1+json",
                "config": descriptor(self.config, f"{OCI}.config.v1+json"),
                "layers": [descriptor(layer, f"{OCI}.layer.v1.tar{suffix}") for layer in packed],
            }
        ).encode()
        self.blobs = {digest(blob): blob for blob in (*packed, self.config, self.manifest)}

    def index(self, *others: "Container") -> bytes:
        """An index of this image and others, by architecture."""
        entries = []
        for container in (self, *others):
            entry = descriptor(container.manifest, f"{OCI}.manifest.v1+json")
            architecture = json.loads(container.config)["architecture"]
            entries.append(entry | {"platform": {"os": "linux", "architecture": architecture}})
        return json.dumps(
            {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": entries}
        ).encode()

    def layout(self, root: Path, tag: str = "latest") -> Path:
        """Write an OCI layout directory."""
        (root / "blobs" / "sha256").mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        for name, blob in self.blobs.items():
            (root / "blobs" / "sha256" / name.partition(":")[2]).write_bytes(blob)
        entry = descriptor(self.manifest, f"{OCI}.manifest.v1+json")
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return root

    def oci_archive(self, path: Path) -> Path:
        """Write a tar archive of an OCI layout."""
        root = self.layout(path.parent / f"{path.name}.layout")
        with tarfile.open(path, "w") as tar:
            tar.add(root, ".")
        return path

    def docker_archive(self, path: Path, name: str = "team/app:1.2") -> Path:
        """Write what ``docker save`` writes."""
        files = {"config.json": self.config}
        files |= {f"{index}/layer.tar": layer for index, layer in enumerate(self.layers)}
        manifest = [
            {"Config": "config.json", "RepoTags": [name], "Layers": [n for n in files if n[0].isdigit()]}
        ]
        with tarfile.open(path, "w") as tar:
            for file, data in [*files.items(), ("manifest.json", json.dumps(manifest).encode())]:
                member = tarfile.TarInfo(file)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return path


def zstd(data: bytes) -> bytes:
    return bytes(zstd_module().compress(data))


def descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}
