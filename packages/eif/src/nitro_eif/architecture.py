"""The processors that enclaves run on."""

from enum import StrEnum


class Architecture(StrEnum):
    """The processor that an image is for: bit 0 of the EIF header's flags."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"

    @property
    def oci_name(self) -> str:
        """The name of this processor in container images (OCI image-spec, image-index.md)."""
        return {Architecture.X86_64: "amd64", Architecture.AARCH64: "arm64"}[self]
