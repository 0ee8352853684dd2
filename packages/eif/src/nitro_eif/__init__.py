"""Read, measure, build, sign and explain AWS Nitro Enclave Image Files.

>>> import nitro_eif
>>> with nitro_eif.Eif.open("hello.eif") as eif:  # doctest: +SKIP
...     print(nitro_eif.measure(eif).pcr0.hex())

Importing this is fast, because everything is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nitro_eif.architecture import Architecture
from nitro_eif.errors import (
    EifError,
    EifFormatError,
    HostError,
    RegistryError,
    SigningError,
    SigningProblem,
    UsageError,
)

if TYPE_CHECKING:
    from nitro_eif.build.application import (
        Launch,
        aws_bootstrap_ramdisk,
        bootstrap_ramdisk,
        launch_of,
        nitro_cli_launch,
        write_application,
    )
    from nitro_eif.build.init import guest_init
    from nitro_eif.build.kernel_package import Kernel, read_blobs, read_package
    from nitro_eif.comparison import Difference, compare
    from nitro_eif.container.images import Image, ImageConfig, open_image
    from nitro_eif.disassembly import assemble, extract
    from nitro_eif.filesystem.cpio import Entry, Node, write_cpio
    from nitro_eif.filesystem.ramdisk import read_ramdisk
    from nitro_eif.filesystem.rootfs import read_rootfs
    from nitro_eif.filesystem.tree import Tree, tree_of
    from nitro_eif.image.findings import RULES, Fate, Finding, Rule, Severity
    from nitro_eif.image.format import Header, Section, SectionType
    from nitro_eif.image.kernel import kernel_problem
    from nitro_eif.image.measure import (
        Checksums,
        Measured,
        Measurements,
        checksum,
        measure,
        measure_and_checksum,
        measure_contents,
    )
    from nitro_eif.image.metadata import BuildMetadata, Metadata
    from nitro_eif.image.reader import Eif
    from nitro_eif.image.readers import Reader, objections
    from nitro_eif.image.registers import (
        INSTANCE_ID_PATTERN,
        ROLE_ARN_PATTERN,
        extend,
        pcr3,
        pcr4,
        pcr8,
        pcr_of_data,
        pcr_of_digest,
    )
    from nitro_eif.image.signature import ImageSignature, SignatureSection, read_signatures
    from nitro_eif.image.validate import refusals, require_bootable, validate
    from nitro_eif.image.writer import Contents, pack_eif, write_eif, write_sections
    from nitro_eif.signing.keys import KeySigner, KmsSigner, Signer, load_signer
    from nitro_eif.signing.sign import make_signature, remove_signature, sign

_LATER = {
    "filesystem.cpio": ("Entry", "Node", "write_cpio"),
    "image.findings": ("RULES", "Fate", "Finding", "Rule", "Severity"),
    "image.format": ("Header", "Section", "SectionType"),
    "image.kernel": ("kernel_problem",),
    "image.measure": (
        "Checksums",
        "Measured",
        "Measurements",
        "checksum",
        "measure",
        "measure_and_checksum",
        "measure_contents",
    ),
    "image.metadata": ("BuildMetadata", "Metadata"),
    "image.reader": ("Eif",),
    "image.readers": ("Reader", "objections"),
    "image.registers": (
        "INSTANCE_ID_PATTERN",
        "ROLE_ARN_PATTERN",
        "extend",
        "pcr3",
        "pcr4",
        "pcr8",
        "pcr_of_data",
        "pcr_of_digest",
    ),
    "image.validate": ("refusals", "require_bootable", "validate"),
    "image.writer": ("Contents", "pack_eif", "write_eif", "write_sections"),
    "build.application": (
        "Launch",
        "aws_bootstrap_ramdisk",
        "bootstrap_ramdisk",
        "launch_of",
        "nitro_cli_launch",
        "write_application",
    ),
    "build.init": ("guest_init",),
    "comparison": ("Difference", "compare"),
    "build.kernel_package": ("Kernel", "read_blobs", "read_package"),
    "signing.keys": ("KeySigner", "KmsSigner", "Signer", "load_signer"),
    "container.images": ("Image", "ImageConfig", "open_image"),
    "disassembly": ("assemble", "extract"),
    "filesystem.ramdisk": ("read_ramdisk",),
    "image.signature": ("ImageSignature", "SignatureSection", "read_signatures"),
    "signing.sign": ("make_signature", "remove_signature", "sign"),
    "filesystem.rootfs": ("read_rootfs",),
    "filesystem.tree": ("Tree", "tree_of"),
}
_MODULES = {name: module for module, names in _LATER.items() for name in names}


if not TYPE_CHECKING:  # a type checker reads the imports above, and should refuse names that are not there

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found


__all__ = [
    "INSTANCE_ID_PATTERN",
    "ROLE_ARN_PATTERN",
    "RULES",
    "Architecture",
    "BuildMetadata",
    "Checksums",
    "Contents",
    "Difference",
    "Eif",
    "EifError",
    "EifFormatError",
    "Entry",
    "Fate",
    "Finding",
    "Header",
    "HostError",
    "Image",
    "ImageConfig",
    "ImageSignature",
    "Kernel",
    "KeySigner",
    "KmsSigner",
    "Launch",
    "Measured",
    "Measurements",
    "Metadata",
    "Node",
    "Reader",
    "RegistryError",
    "Rule",
    "Section",
    "SectionType",
    "Severity",
    "SignatureSection",
    "Signer",
    "SigningError",
    "SigningProblem",
    "Tree",
    "UsageError",
    "assemble",
    "aws_bootstrap_ramdisk",
    "bootstrap_ramdisk",
    "checksum",
    "compare",
    "extend",
    "extract",
    "guest_init",
    "kernel_problem",
    "launch_of",
    "load_signer",
    "make_signature",
    "measure",
    "measure_and_checksum",
    "measure_contents",
    "nitro_cli_launch",
    "objections",
    "open_image",
    "pack_eif",
    "pcr3",
    "pcr4",
    "pcr8",
    "pcr_of_data",
    "pcr_of_digest",
    "read_blobs",
    "read_package",
    "read_ramdisk",
    "read_rootfs",
    "read_signatures",
    "refusals",
    "remove_signature",
    "require_bootable",
    "sign",
    "tree_of",
    "validate",
    "write_application",
    "write_cpio",
    "write_eif",
    "write_sections",
]
