"""``eif build``: an image from its parts, or from an application."""

import argparse
import os
import shlex
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from nitro_eif.architecture import Architecture
from nitro_eif.build.application import (
    Launch,
    aws_bootstrap_ramdisk,
    bootstrap_ramdisk,
    dropped_xattrs,
    launch_of,
    nitro_cli_launch,
    reads_newlines,
    write_application,
)
from nitro_eif.build.init import guest_init
from nitro_eif.build.inspection import concerns, lacks_init
from nitro_eif.build.kernel_package import (
    CMDLINE,
    CMDLINE_AARCH64,
    NEEDED_MODULES,
    Kernel,
    read_blobs,
    read_package,
)
from nitro_eif.commands.options import add_json, add_signing, metadata_of, signing_of
from nitro_eif.commands.terminal import Meter, print_json, printable, size, story
from nitro_eif.container.images import Image, ImageConfig, open_image
from nitro_eif.errors import EifFormatError, HostError, UsageError
from nitro_eif.files import map_file, map_temporary, read_file, scratch_file
from nitro_eif.filesystem.compression import compress
from nitro_eif.filesystem.ramdisk import read_ramdisk
from nitro_eif.filesystem.rootfs import read_rootfs
from nitro_eif.filesystem.tree import Tree, tree_of
from nitro_eif.image.kernel import kernel_hint, kernel_problem
from nitro_eif.image.measure import measure_contents
from nitro_eif.image.metadata import kernel_config
from nitro_eif.image.writer import Contents, write_eif

EXAMPLES = (
    "eif build --kernel bzImage --cmdline 'reboot=k panic=30' --ramdisk init.cpio --output hello.eif",
    "eif build --image alpine:3.22 --kernel-package linux-image.deb --cmd 'echo hi' --output hello.eif",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to its parser."""
    parser.add_argument("--output", metavar="FILE", required=True, help="the image to write")
    parser.add_argument("--kernel", metavar="FILE", help="bzImage (x86_64) or Image (aarch64)")
    parser.add_argument("--cmdline", metavar="TEXT", help="the kernel's command line")
    parser.add_argument(
        "--ramdisk", metavar="FILE", action="append", default=[], help="cpio archive; repeat for more"
    )
    parser.add_argument(
        "--arch", choices=["x86_64", "aarch64"], default="x86_64", help="default: %(default)s"
    )
    parser.add_argument("--compress", choices=["gzip", "xz", "zstd"], help="compress the ramdisks")
    _add_application(parser)
    identity = parser.add_argument_group("metadata (not measured)")
    identity.add_argument("--name", help="image name; default: the application image's own, or enclave")
    identity.add_argument("--version", help="image version; default: 1.0")
    identity.add_argument("--metadata", metavar="FILE", help="JSON object of your own, at most 4096 bytes")
    identity.add_argument(
        "--build-time", metavar="TIME", help="RFC 3339, or now; default: $SOURCE_DATE_EPOCH, or 1970"
    )
    identity.add_argument("--build-tool", metavar="NAME", help="default: nitro-eif")
    identity.add_argument("--build-tool-version", metavar="TEXT", help="default: this tool's version")
    identity.add_argument("--img-os", metavar="NAME", help="default: from --kernel-config, or OS")
    identity.add_argument("--img-kernel", metavar="TEXT", help="default: from --kernel-config, or kernel")
    identity.add_argument(
        "--kernel-config",
        "--kernel_config",
        metavar="FILE",
        help="the kernel's .config, for its system and version",
    )
    parser.add_argument(
        "--algo", choices=["sha384"], default="sha384", help="there is one: Nitro measures with SHA-384"
    )
    parser.add_argument(
        "--allow-unbootable",
        action="store_true",
        help="write the image although Nitro would never boot its kernel",
    )
    add_signing(parser.add_argument_group("signing"), required=False)
    add_json(parser)


def _add_application(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("an application, instead of --ramdisk")
    source.add_argument(
        "--image",
        metavar="IMAGE",
        help="registry reference, OCI or docker save archive (- for stdin), OCI layout, docker-daemon:NAME",
    )
    source.add_argument("--rootfs", metavar="PATH", help="root file system: a directory or tar archive")
    source.add_argument(
        "--plain-http", action="store_true", help="pull without TLS; only from a network you trust"
    )
    source.add_argument(
        "--entrypoint",
        metavar="TEXT",
        help="instead of the image's ENTRYPOINT and CMD; split as a shell does",
    )
    source.add_argument("--cmd", metavar="TEXT", help="instead of the image's CMD; split as a shell does")
    source.add_argument(
        "--env", metavar="NAME=VALUE", action="append", default=[], help="added; repeat for more"
    )
    source.add_argument("--workdir", metavar="PATH", help="instead of the image's WORKDIR")
    source.add_argument("--user", metavar="USER[:GROUP]", help="instead of the image's USER")
    source.add_argument(
        "--nitro-cli", action="store_true", help="as nitro-cli: CMD or else ENTRYPOINT, no WORKDIR, no USER"
    )
    base = parser.add_argument_group("kernel and init for an application")
    base.add_argument(
        "--blobs", metavar="DIR", help="nitro-cli's blobs: kernel, command line, init and nsm.ko"
    )
    base.add_argument(
        "--kernel-package",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="kernel package, .deb or .rpm, or a directory of such; repeat for more; modules are picked",
    )
    base.add_argument(
        "--module", metavar="NAME", action="append", default=[], help="one more module of the package"
    )
    base.add_argument(
        "--init", metavar="FILE", help="static executable; default: this package's, or the blobs'"
    )


_NAME = "enclave"
"""An image's name where nobody gives one. The name of a file here would say where it was built."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the sections are made of."""

    kernel: bytes | memoryview
    cmdline: str
    ramdisks: list[bytes | memoryview]
    name: str
    version: str = "1.0"
    docker_info: object = None
    config: str | None = None


def run(options: argparse.Namespace) -> int:
    """Build the image and print its measurements, as eif_build prints them."""
    signing = signing_of(options)
    with ExitStack() as stack:
        if options.image or options.rootfs:
            parts = _from_application(options, stack)
        else:
            parts = _from_parts(options, stack)
        system_kernel = kernel_config(parts.config) if parts.config and not options.kernel_config else None
        metadata = metadata_of(
            options,
            default_name=parts.name,
            default_version=parts.version,
            default_kernel=system_kernel,
            docker_info=parts.docker_info,
        )
        contents = Contents(
            kernel=parts.kernel,
            cmdline=os.fsencode(parts.cmdline),
            ramdisks=[_compressed(ramdisk, options.compress, stack) for ramdisk in parts.ramdisks],
            metadata=metadata.pack(),
            architecture=Architecture(options.arch),
        )
        _check_kernel(contents, allowed=options.allow_unbootable)
        with Meter("Measuring") as meter:
            measurements = measure_contents(contents, progress=meter)
        if signing is not None:
            contents = replace(contents, signature=signing.signature(measurements.pcr0))
            measurements = measurements._replace(pcr8=signing.pcr8)
        with Meter(f"Writing {options.output}") as meter:
            write_eif(contents, options.output, progress=meter)
    if options.json:
        print_json({"Measurements": measurements.as_json()})
    else:
        print(f"Output file: {options.output}")
        print_json(measurements.as_json())
    return 0


def _check_kernel(contents: Contents, *, allowed: bool) -> None:
    problem = kernel_problem(contents.kernel, contents.architecture)
    if problem is None:
        return
    if not allowed:
        raise UsageError(
            f"{problem}: the enclave would never start, and show nothing",
            hint=f"{kernel_hint(contents.architecture)}; or build it all the same with --allow-unbootable",
        )
    story(f"eif: warning: {problem}")


def _from_parts(options: argparse.Namespace, stack: ExitStack) -> _Parts:
    if not (options.kernel and options.cmdline is not None and options.ramdisk):
        raise UsageError(
            "give --kernel, --cmdline and at least one --ramdisk, or an application with --image or --rootfs"
        )
    for option in (
        "blobs",
        "kernel_package",
        "init",
        "cmd",
        "entrypoint",
        "env",
        "workdir",
        "user",
        "nitro_cli",
    ):
        if getattr(options, option):
            raise UsageError(f"--{option.replace('_', '-')} goes with --image or --rootfs")
    ramdisks: list[bytes | memoryview] = [
        stack.enter_context(map_file(ramdisk)) for ramdisk in options.ramdisk
    ]
    _warn_of_no_init(ramdisks, options.cmdline)
    return _Parts(
        stack.enter_context(map_file(options.kernel)),
        options.cmdline,
        ramdisks,
        _NAME,
    )


def _warn_of_no_init(ramdisks: list[bytes | memoryview], cmdline: str) -> None:
    if "rdinit=" in cmdline:
        return
    try:
        trees = [tree_of(read_ramdisk(memoryview(ramdisk))) for ramdisk in ramdisks]
    except (EifFormatError, HostError) as error:
        story(f"eif: warning: a ramdisk cannot be read, so nobody knows whether it has an /init: {error}")
        return
    if lacks_init(trees):
        story("eif: warning: no ramdisk has an /init, and the command line has no rdinit=")


def _from_application(options: argparse.Namespace, stack: ExitStack) -> _Parts:
    if options.ramdisk:
        raise UsageError("--ramdisk goes without --image and --rootfs, which make the ramdisks")
    kernel = _kernel(options, stack)
    tree, config, image = _application(options, stack)
    launch = _launch(options, config, tree)
    _warn_of_xattrs(tree)
    for concern in concerns(tree, launch, Architecture(options.arch)):
        story(f"eif: warning: {printable(concern)}")
    init, bootstrap = _bootstrap(options, kernel)
    with scratch_file() as file:
        write_application(
            file,
            tree,
            launch,
            nitro_cli=options.nitro_cli,
            newlines=reads_newlines(init) and not options.nitro_cli,
        )
        application = map_temporary(file)
    return _Parts(
        kernel.image,
        options.cmdline if options.cmdline is not None else kernel.cmdline,
        [bootstrap, application],
        (image.name or image.digest) if image else _NAME,
        image.digest if image else "1.0",
        image.inspect() if image else None,
        kernel.config,
    )


def _kernel(options: argparse.Namespace, stack: ExitStack) -> Kernel:
    architecture = Architecture(options.arch)
    given = [name for name in ("blobs", "kernel", "kernel_package") if getattr(options, name)]
    if len(given) != 1:
        raise UsageError(
            "say where the kernel comes from, with one of --blobs, --kernel-package and --kernel"
        )
    if options.blobs:
        return read_blobs(Path(options.blobs), architecture, stack)
    if options.kernel:
        cmdline = CMDLINE if architecture is Architecture.X86_64 else CMDLINE_AARCH64
        return Kernel(stack.enter_context(map_file(options.kernel)), cmdline)
    wanted = (*NEEDED_MODULES, *options.module)
    packages = [Path(path) for path in options.kernel_package]
    kernel = read_package(packages, architecture, stack, modules=wanted)
    named = ", ".join(options.kernel_package)
    unknown = [name for name in kernel.missing if name in options.module]
    if unknown:
        raise UsageError(f"{named}: there is no module {', '.join(unknown)}")
    for name in kernel.missing:
        story(f"eif: warning: {named} has no module {name}, nor is it built in")
    return kernel


def _bootstrap(options: argparse.Namespace, kernel: Kernel) -> tuple[bytes, bytes]:
    """The init, and the ramdisk that has it."""
    if not options.init and kernel.init is not None:
        return kernel.init, aws_bootstrap_ramdisk(kernel.init, kernel.nsm)
    init = read_file(options.init) if options.init else guest_init(Architecture(options.arch))
    return init, bootstrap_ramdisk(init, kernel.modules)


def _application(options: argparse.Namespace, stack: ExitStack) -> tuple[Tree, ImageConfig, Image | None]:
    if options.image and options.rootfs:
        raise UsageError("--image and --rootfs exclude each other")
    if options.rootfs:
        return read_rootfs(Path(options.rootfs), stack), ImageConfig(), None
    with Meter(f"Fetching {options.image}") as meter:
        image = open_image(
            options.image, Architecture(options.arch), stack, plain_http=options.plain_http, progress=meter
        )
        return image.unpack(stack), image.config, image


def _launch(options: argparse.Namespace, config: ImageConfig, tree: Tree) -> Launch:
    environment = {assignment.partition("=")[0]: assignment for assignment in config.env}
    for assignment in options.env:
        name, equals, _ = assignment.partition("=")
        if not equals or not name:
            raise UsageError(f"--env {assignment!r}: write NAME=VALUE")
        environment[name] = assignment
    config = replace(
        config,
        entrypoint=config.entrypoint if options.entrypoint is None else _words(options.entrypoint),
        cmd=config.cmd if options.cmd is None and options.entrypoint is None else _words(options.cmd or ""),
        env=tuple(environment.values()),
        workdir=options.workdir or config.workdir,
        user=options.user or config.user,
    )
    if options.nitro_cli:
        return nitro_cli_launch(config)
    launch = launch_of(config, tree)
    if options.blobs and not options.init and (launch.user not in {"", "0:0"} or launch.workdir != "/"):
        story("eif: warning: AWS's init ignores USER and WORKDIR; use --init, or --kernel-package")
    return launch


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}") from None


def _warn_of_xattrs(tree: Tree) -> None:
    dropped = dropped_xattrs(tree)
    if dropped:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(dropped.items()))
        story(f"eif: warning: a ramdisk has no extended attributes; left out: {names}")


def _compressed(ramdisk: bytes | memoryview, how: str | None, stack: ExitStack) -> bytes | memoryview:
    if how is None:
        return ramdisk
    file = stack.enter_context(scratch_file())
    compress(memoryview(ramdisk), how, file)
    packed = map_temporary(file)
    story(f"eif: ramdisk of {size(len(ramdisk))} compressed to {size(len(packed))}")
    return packed
