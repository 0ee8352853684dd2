"""Read, measure, build, sign and explain AWS Nitro Enclave Image Files.

>>> import nitro_eif
>>> with nitro_eif.Eif.open("hello.eif") as eif:  # doctest: +SKIP
...     print(nitro_eif.measure(eif).pcr0.hex())

Importing this is fast: what needs cryptography or the network is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nitro_eif.cpio import Entry, Node, write_cpio
from nitro_eif.errors import EifError, EifFormatError, HostError, RegistryError, SigningError, UsageError
from nitro_eif.findings import RULES, Fate, Finding, Rule, Severity
from nitro_eif.format import Architecture, Header, Section, SectionType
from nitro_eif.guest import guest_init
from nitro_eif.measure import (
    Checksums,
    Measurements,
    checksum,
    extend,
    measure,
    measure_and_checksum,
    measure_contents,
    pcr3,
    pcr4,
    pcr8,
    pcr_of_data,
    pcr_of_digest,
)
from nitro_eif.metadata import BuildMetadata, Metadata
from nitro_eif.reader import Eif
from nitro_eif.validate import refusals, validate
from nitro_eif.writer import Contents, pack_eif, write_eif, write_sections

if TYPE_CHECKING:
    from nitro_eif.application import (
        Launch,
        aws_bootstrap_ramdisk,
        bootstrap_ramdisk,
        launch_of,
        nitro_cli_launch,
        write_application,
    )
    from nitro_eif.comparison import Difference, compare
    from nitro_eif.kernelpackage import Kernel, read_blobs, read_package
    from nitro_eif.keys import KeySigner, KmsSigner, Signer, load_signer
    from nitro_eif.oci import Image, ImageConfig, open_image
    from nitro_eif.parts import assemble, extract
    from nitro_eif.ramdisk import read_ramdisk
    from nitro_eif.signature import ImageSignature, make_signature, read_signatures, remove_signature, sign
    from nitro_eif.sources import read_rootfs
    from nitro_eif.tree import Tree, tree_of

_LATER = {
    "application": (
        "Launch",
        "aws_bootstrap_ramdisk",
        "bootstrap_ramdisk",
        "launch_of",
        "nitro_cli_launch",
        "write_application",
    ),
    "comparison": ("Difference", "compare"),
    "parts": ("assemble", "extract"),
    "kernelpackage": ("Kernel", "read_blobs", "read_package"),
    "keys": ("KeySigner", "KmsSigner", "Signer", "load_signer"),
    "oci": ("Image", "ImageConfig", "open_image"),
    "ramdisk": ("read_ramdisk",),
    "signature": ("ImageSignature", "make_signature", "read_signatures", "remove_signature", "sign"),
    "sources": ("read_rootfs",),
    "tree": ("Tree", "tree_of"),
}
_MODULES = {name: module for module, names in _LATER.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"nitro_eif.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'nitro_eif' has no attribute {name!r}")


__all__ = [
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
    "Measurements",
    "Metadata",
    "Node",
    "RegistryError",
    "Rule",
    "Section",
    "SectionType",
    "Severity",
    "Signer",
    "SigningError",
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
    "launch_of",
    "load_signer",
    "make_signature",
    "measure",
    "measure_and_checksum",
    "measure_contents",
    "nitro_cli_launch",
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
    "sign",
    "tree_of",
    "validate",
    "write_application",
    "write_cpio",
    "write_eif",
    "write_sections",
]
