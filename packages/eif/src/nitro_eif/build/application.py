"""Ramdisks from an application: how its image wants to be run, told to the enclave's init.

The second ramdisk has the application's files under ``/rootfs``, and beside it what the init reads: ``/cmd``
and ``/env`` (one argument or assignment a line, as AWS's init takes them), ``/workdir`` and ``/user`` (only
this project's init takes these). Where an argument or variable has a newline in it, ``/cmd0`` and ``/env0``
take the place of the first two: a NUL ends each entry there, and only this project's init reads them.

The first ramdisk has the init, kernel modules and ``/modules.load``.
"""

import io
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import IO, Final

from nitro_eif.container.images import ImageConfig
from nitro_eif.errors import UsageError
from nitro_eif.filesystem.cpio import Node, write_cpio
from nitro_eif.filesystem.tree import Tree, clean

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What Docker and Podman set where the image sets none."""
LINUXKIT_MTIME: Final = 1492533000
"""2017-04-18T16:30:00Z: the time that AWS's build tool gives every file of its own."""

_MOUNT_POINTS: Final = ("dev", "run", "sys", "var", "proc", "tmp")
"""What AWS's build adds under ``/rootfs`` for the init."""
_IDS_MAX: Final = 0xFFFF_FFFF
_ACCOUNTS_BYTES_MAX: Final = 16 << 20
"""Of /etc/passwd and /etc/group."""

_NITRO_CLI_LEFT_OUT: Final = (".dockerenv", "Dockerfile", "dev/console", "etc/hostname")
_NITRO_CLI_HOSTS: Final = (
    b"127.0.0.1       localhost\n"
    b"::1     localhost ip6-localhost ip6-loopback\n"
    b"fe00::0 ip6-localnet\n"
    b"ff00::0 ip6-mcastprefix\n"
    b"ff02::1 ip6-allnodes\n"
    b"ff02::2 ip6-allrouters\n"
)
_NITRO_CLI_RESOLV: Final = b"\n# no resolv.conf configured\n"


@dataclass(frozen=True, slots=True)
class Launch:
    """How the init starts the application."""

    arguments: tuple[str, ...]
    environment: tuple[str, ...] = ()
    workdir: str = "/"
    user: str = ""
    """``uid:gid[:gid,gid...]`` in numbers; empty for root."""


def launch_of(config: ImageConfig, tree: Tree) -> Launch:
    """Work out what Docker would run: ENTRYPOINT and CMD together, ENV, WORKDIR and USER.

    PATH and HOME are set as Docker sets them where the image does not.

    Raises:
        UsageError: The image names no program, or a user that it does not have.
    """
    arguments = (*config.entrypoint, *config.cmd)
    if not arguments:
        raise UsageError("the image has neither ENTRYPOINT nor CMD: say what to run with --cmd")
    user, home = resolve_user(config.user, tree)
    environment = list(config.env)
    names = {assignment.partition("=")[0] for assignment in environment}
    if "PATH" not in names:
        environment.append(f"PATH={DEFAULT_PATH}")
    if "HOME" not in names:
        environment.append(f"HOME={home}")
    workdir = posixpath.normpath(posixpath.join("/", config.workdir))
    return Launch(arguments, tuple(environment), workdir.replace("//", "/", 1), user)


def nitro_cli_launch(config: ImageConfig) -> Launch:
    """Work out what nitro-cli makes of an image: CMD, or else ENTRYPOINT; no WORKDIR, no USER.

    Raises:
        UsageError: The image names no program.
    """
    arguments = config.cmd or config.entrypoint
    if not arguments:
        raise UsageError("the image has neither ENTRYPOINT nor CMD: nitro-cli refuses it, too")
    return Launch(arguments, config.env)


def resolve_user(user: str, tree: Tree) -> tuple[str, str]:
    """Look a USER up in the image's /etc/passwd and /etc/group; returns the ids in numbers, and the home.

    As Docker does: ``name``, ``uid``, ``name:group``, ``uid:gid``; other groups count where none is named.

    Raises:
        UsageError: The image does not have that user or group.
    """
    if not user:
        return "", "/root"
    name, _, group = user.partition(":")
    accounts = _records(tree, "etc/passwd", 7)
    groups = _records(tree, "etc/group", 4)
    account = next((row for row in accounts if row[0] == name), None)
    if account is None and _is_id(name):
        account = next((row for row in accounts if row[2] == name), None)
    if account is None and not _is_id(name):
        raise UsageError(f"USER {user!r}: the image's /etc/passwd has no user {name!r}")
    uid, gid = (account[2], account[3]) if account else (name, "0")
    others: list[str] = []
    if group:
        found = next((row for row in groups if row[0] == group), None)
        if found is None and not _is_id(group):
            raise UsageError(f"USER {user!r}: the image's /etc/group has no group {group!r}")
        gid = found[2] if found else group
    elif account:
        others = [row[2] for row in groups if account[0] in row[3].split(",") and row[2] != gid]
    ids = [uid, gid, *others]
    if not all(_is_id(number) for number in ids):
        raise UsageError(f"USER {user!r}: the image's /etc/passwd or /etc/group has no number for it")
    text = f"{int(uid)}:{int(gid)}"
    if others:
        text += ":" + ",".join(str(number) for number in sorted({int(other) for other in others}))
    return text, (account[5] if account else "") or "/"


def reads_newlines(init: bytes) -> bool:
    """Whether an init reads ``/cmd0`` and ``/env0``, whose entries may have newlines; AWS's does not."""
    return b"/cmd0\0" in init and b"/env0\0" in init


def write_application(
    file: IO[bytes], tree: Tree, launch: Launch, *, nitro_cli: bool = False, newlines: bool = False
) -> None:
    """Write the second ramdisk.

    Args:
        file: Where to.
        tree: The application's files, changed in place: mount points and WORKDIR are made where missing.
        launch: How to run it.
        newlines: Whether the init reads entries with newlines in them; see `reads_newlines`.
        nitro_cli: Treat the files as nitro-cli's build does (hosts, resolv.conf, hard links and others).

    Raises:
        UsageError: An argument or variable has a newline in it, or a file cannot be in a ramdisk.
    """
    if nitro_cli:
        _as_nitro_cli(tree)
    for path in (*_MOUNT_POINTS, clean(launch.workdir)):
        if path and tree.resolve(path) is None and path not in tree:
            try:
                tree.add(path, Node.directory())
            except ValueError as error:
                raise UsageError(f"{path!r} cannot be made in the image: {error}") from None
    entries = [("rootfs", Node.directory())]
    entries += [(f"rootfs/{path}", node) for path, node in tree.items()]
    entries += _lists(launch, newlines=newlines)
    if launch.workdir != "/" and not nitro_cli:
        entries.append(("workdir", Node.file(_lines([launch.workdir], "the working directory"))))
    if launch.user and not nitro_cli:
        entries.append(("user", Node.file(_lines([launch.user], "the user"))))
    write_cpio(file, entries)


def bootstrap_ramdisk(init: bytes, modules: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """The first ramdisk: an init, and modules in the order in which it loads them.

    Args:
        init: A static executable.
        modules: Names and contents of uncompressed ``.ko`` files.
    """
    entries = [("dev", Node.directory()), ("init", Node.file(init, 0o755))]
    if modules:
        paths = [f"modules/{index:03d}-{name}.ko" for index, (name, _) in enumerate(modules)]
        entries.append(("modules", Node.directory()))
        entries += [(path, Node.file(data)) for path, (_, data) in zip(paths, modules, strict=True)]
        entries.append(("modules.load", Node.file(_lines([f"/{path}" for path in paths], "a module's path"))))
    return _cpio(entries)


def aws_bootstrap_ramdisk(init: bytes, nsm: bytes | None) -> bytes:
    """The first ramdisk as nitro-cli makes it of its blobs.

    Args:
        init: AWS's init.
        nsm: The NSM driver, ``nsm.ko``; newer kernels have it built in.
    """
    entries = [("dev", Node.directory()), ("init", Node.file(init, 0o755))]
    if nsm is not None:
        entries.append(("nsm.ko", Node.file(nsm, 0o755)))
    return _cpio(entries, mtime=LINUXKIT_MTIME)


def dropped_xattrs(tree: Tree) -> dict[str, int]:
    """Count extended attributes that the ramdisk cannot carry, by name."""
    counts: dict[str, int] = {}
    for node in tree.nodes():
        for name in node.xattrs:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _cpio(entries: Iterable[tuple[str, Node]], *, mtime: int = 0) -> bytes:
    file = io.BytesIO()
    write_cpio(file, entries, mtime=mtime)
    return file.getvalue()


def _lists(launch: Launch, *, newlines: bool) -> list[tuple[str, Node]]:
    """The files of arguments and environment, as lines where that is possible."""
    if newlines and any("\n" in value for value in (*launch.arguments, *launch.environment)):
        return [
            ("cmd0", Node.file(_ended(launch.arguments, "an argument of the application", "\0"))),
            ("env0", Node.file(_ended(launch.environment, "an environment variable", "\0"))),
        ]
    return [
        ("cmd", Node.file(_lines(launch.arguments, "an argument of the application"))),
        ("env", Node.file(_lines(launch.environment, "an environment variable"))),
    ]


def _lines(values: Iterable[str], what: str) -> bytes:
    return _ended(values, what, "\n")


def _ended(values: Iterable[str], what: str, end: str) -> bytes:
    """Each value, with ``end`` after it."""
    data = bytearray()
    for value in values:
        if "\0" in value:
            raise UsageError(f"{what} has a NUL in it, {value[:60]!r}: no program can be given one")
        if end in value:
            raise UsageError(
                f"{what} has a newline in it, {value[:60]!r}: the init reads one a line",
                hint="use this project's init, which reads such values: no --blobs, --init or --nitro-cli",
            )
        data += value.encode("utf-8", "surrogateescape") + end.encode()
    return bytes(data)


def _records(tree: Tree, path: str, fields: int) -> list[list[str]]:
    real = tree.resolve(path)
    node = tree.get(real) if real else None
    if node is None or node.is_directory:
        return []
    if len(node.data) > _ACCOUNTS_BYTES_MAX:
        raise UsageError(f"the image's /{path} has {len(node.data)} bytes: give --user in numbers")
    lines = bytes(node.data).decode("utf-8", "surrogateescape").splitlines()
    return [row for line in lines if len(row := line.split(":")) == fields]


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _IDS_MAX


def _as_nitro_cli(tree: Tree) -> None:
    """Do to the files what linuxkit does to an image that it unpacks."""
    for path in _NITRO_CLI_LEFT_OUT:
        tree.remove(path)
    for path, text in (("etc/hosts", _NITRO_CLI_HOSTS), ("etc/resolv.conf", _NITRO_CLI_RESOLV)):
        old = tree.get(path)
        mode = 0o644 if old is None else old.mode & 0o7777
        tree.add(path, Node.file(text, mode))
    for path in ("dev/pts", "dev/shm", "proc", "sys"):
        if path not in tree:
            tree.add(path, Node.directory())
    if "etc/mtab" not in tree:
        tree.add("etc/mtab", Node.symlink("/proc/mounts"))
    seen: dict[int, str] = {}
    for path, node in list(tree.items()):
        if node.is_directory or node.is_symlink:
            continue
        first = seen.setdefault(id(node), path)
        if first != path:
            target = posixpath.relpath(f"/{first}", f"/{posixpath.dirname(path)}")
            tree.add(path, replace(Node.symlink(target), uid=node.uid, gid=node.gid))
