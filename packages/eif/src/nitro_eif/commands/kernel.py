"""``eif kernel``: a distribution's kernel package, for ``eif build --kernel-package``."""

import argparse
from pathlib import Path
from typing import Final

from nitro_eif.architecture import Architecture
from nitro_eif.build.debian import (
    KEYRING,
    MIRROR_VARIABLE,
    PACKAGE_NAME,
    SUITE,
    SUITE_NAME,
    Apt,
    cache_directory,
)
from nitro_eif.commands.terminal import print_json, size, story
from nitro_eif.errors import UsageError

EXAMPLES = (
    "eif kernel --mirror https://deb.debian.org/debian --suite forky",
    "eif build --image alpine:3.22 --kernel-package $(eif kernel --arch x86_64) --output hello.eif",
)

ARCHITECTURES: Final = {Architecture.X86_64: "amd64", Architecture.AARCH64: "arm64"}
"""What Debian calls them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to its parser."""
    parser.add_argument(
        "package",
        nargs="?",
        metavar="PACKAGE",
        help="Debian's package; default: linux-image-cloud-amd64, or -arm64 with --arch aarch64",
    )
    parser.add_argument(
        "--arch", choices=["x86_64", "aarch64"], default="x86_64", help="default: %(default)s"
    )
    parser.add_argument("--suite", default=SUITE, help="Debian's release; default: %(default)s")
    parser.add_argument(
        "--mirror", metavar="URL", help=f"default: ${MIRROR_VARIABLE}, or that of the system's apt"
    )
    parser.add_argument(
        "--keyring",
        metavar="FILE",
        type=Path,
        default=KEYRING,
        help="whose signature of the Release file counts; default: %(default)s",
    )
    parser.add_argument(
        "--directory", metavar="DIR", type=Path, help="where it is kept; default: the user's cache"
    )
    parser.add_argument("--newest", action="store_true", help="fetch it again, even if one is there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the path")


def run(options: argparse.Namespace) -> int:
    """Fetch the package, unless it is there, and print where it is."""
    architecture = ARCHITECTURES[Architecture(options.arch)]
    name = options.package or f"linux-image-cloud-{architecture}"
    if not PACKAGE_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not the name of a package", hint="apt-cache search linux-image")
    if not SUITE_NAME.fullmatch(options.suite):
        raise UsageError(f"{options.suite!r} is not the name of a release", hint=f"for example {SUITE}")
    directory = options.directory or cache_directory() / "debian" / f"{options.suite}-{architecture}"
    apt = Apt(
        directory.absolute(),
        suite=options.suite,
        architecture=architecture,
        mirror=options.mirror,
        keyring=options.keyring.absolute(),
    )
    package = apt.package(name, newest=options.newest)
    if options.json:
        print_json({"Package": name, "Path": str(package), "Bytes": package.stat().st_size})
        return 0
    story(f"eif: {name}: {size(package.stat().st_size)}")
    print(package)
    return 0
