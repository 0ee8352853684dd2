import io
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from nitro_eif import (
    HostError,
    ImageConfig,
    Launch,
    Node,
    Tree,
    UsageError,
    aws_bootstrap_ramdisk,
    bootstrap_ramdisk,
    guest_init,
    launch_of,
    nitro_cli_launch,
    read_ramdisk,
    read_rootfs,
    tree_of,
    write_application,
)
from nitro_eif.build import application
from nitro_eif.build.application import LINUXKIT_MTIME, dropped_xattrs, reads_newlines, resolve_user
from nitro_eif.testing import tar_member, tar_of

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbroken\n"  # noqa: S105 - a file, no password
GROUP = "root:x:0:\napp:x:1001:\nextra:x:2000:x,app\nwheel:x:10:app\nother:x:3000:x\n"


def image(**files: str) -> Tree:
    tree = Tree()
    for path, text in {"etc/passwd": PASSWD, "etc/group": GROUP, **files}.items():
        tree.add(path, Node.file(text.encode()))
    return tree


def unpack(tree: Tree, launch: Launch, *, nitro_cli: bool = False) -> Tree:
    file = io.BytesIO()
    write_application(file, tree, launch, nitro_cli=nitro_cli)
    return tree_of(read_ramdisk(memoryview(file.getvalue())))


@pytest.mark.parametrize(
    ("user", "ids", "home"),
    [
        ("", "", "/root"),
        ("root", "0:0", "/root"),
        ("app", "1000:1001:10,2000", "/home/app"),
        ("1000", "1000:1001:10,2000", "/home/app"),
        ("app:extra", "1000:2000", "/home/app"),
        ("app:77", "1000:77", "/home/app"),
        ("4242", "4242:0", "/"),
        ("4242:4243", "4242:4243", "/"),
    ],
)
def test_users_are_looked_up_as_docker_does(user: str, ids: str, home: str) -> None:
    assert resolve_user(user, image()) == (ids, home)


@pytest.mark.parametrize("user", ["nobody", "app:nogroup", "-1", "4294967296", "x y"])
def test_users_that_the_image_does_not_have_are_refused(user: str) -> None:
    with pytest.raises(UsageError, match="USER"):
        resolve_user(user, image())


def test_a_list_of_users_that_is_too_long_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "_ACCOUNTS_BYTES_MAX", len(PASSWD))

    assert resolve_user("app", image(**{"etc/group": ""}))[0] == "1000:1001"
    with pytest.raises(UsageError, match=f"has {len(PASSWD) + 1} bytes: give --user in numbers"):
        resolve_user("app", image(**{"etc/passwd": PASSWD + "\n", "etc/group": ""}))


def test_entrypoint_and_cmd_go_together_and_path_and_home_are_set() -> None:
    config = ImageConfig(("/bin/app",), ("--serve", "a b"), ("A=1",), "srv/../data", "app")

    launch = launch_of(config, image())

    assert launch.arguments == ("/bin/app", "--serve", "a b")
    assert launch.environment == (
        "A=1",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/home/app",
    )
    assert (launch.workdir, launch.user) == ("/data", "1000:1001:10,2000")
    assert launch_of(ImageConfig(cmd=("x",), env=("PATH=/p", "HOME=/h")), image()).environment == (
        "PATH=/p",
        "HOME=/h",
    )


def test_nitro_cli_takes_cmd_or_else_entrypoint() -> None:
    assert nitro_cli_launch(ImageConfig(("e",), ("c",), ("A=1",), "/w", "app")) == Launch(("c",), ("A=1",))
    assert nitro_cli_launch(ImageConfig(("e",))).arguments == ("e",)


def test_an_image_that_runs_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="--cmd"):
        launch_of(ImageConfig(), image())
    with pytest.raises(UsageError, match="nitro-cli refuses"):
        nitro_cli_launch(ImageConfig())


def test_the_second_ramdisk_tells_the_init_how_to_run_the_application() -> None:
    launch = Launch(("/bin/app", "--x"), ("A=1", "B=two words"), "/srv/data", "7:8:9")

    found = unpack(image(), launch)

    assert bytes(found["cmd"].data) == b"/bin/app\n--x\n"
    assert bytes(found["env"].data) == b"A=1\nB=two words\n"
    assert bytes(found["workdir"].data) == b"/srv/data\n"
    assert bytes(found["user"].data) == b"7:8:9\n"
    assert bytes(found["rootfs/etc/passwd"].data) == PASSWD.encode()
    for path in ("dev", "run", "sys", "var", "proc", "tmp", "srv/data"):
        assert found[f"rootfs/{path}"].is_directory


def test_root_in_the_root_directory_needs_no_files() -> None:
    found = unpack(image(), Launch(("/bin/app",)))

    assert "workdir" not in found
    assert "user" not in found


def test_mount_points_that_are_links_stay_links() -> None:
    tree = image()
    tree.add("run", Node.symlink("var/run"))

    assert unpack(tree, Launch(("x",)))["rootfs/run"].is_symlink


def test_what_cannot_be_a_line_is_refused() -> None:
    for launch in (Launch(("a\nb",)), Launch(("a",), ("A=\n",))):
        with pytest.raises(UsageError, match=r"has a newline in it.*the init reads one a line") as caught:
            unpack(image(), launch)
        assert "this project's init" in caught.value.hint
    with pytest.raises(UsageError, match="has a NUL in it"):
        unpack(image(), Launch(("a\0",)))


@pytest.mark.parametrize(
    ("launch", "files"),
    [
        (Launch(("a\nb", "c"), ("A=1", "B=\n")), {"cmd0": b"a\nb\0c\0", "env0": b"A=1\0B=\n\0"}),
        (Launch(("a",), ("A=\n",)), {"cmd0": b"a\0", "env0": b"A=\n\0"}),
        (Launch(("a",), ("A=1",)), {"cmd": b"a\n", "env": b"A=1\n"}),
    ],
)
def test_values_with_newlines_are_ended_by_nuls(launch: Launch, files: dict[str, bytes]) -> None:
    file = io.BytesIO()
    write_application(file, image(), launch, newlines=True)
    found = tree_of(read_ramdisk(memoryview(file.getvalue())))

    assert {path: bytes(node.data) for path, node in found.items() if path[:3] in {"cmd", "env"}} == files


def test_this_projects_init_reads_newlines_and_others_do_not() -> None:
    assert reads_newlines(guest_init())
    for program in (b"/cmd\0 /env\0", b"/cmd0\0 /env\0", b"/cmd\0 /env0\0"):
        assert not reads_newlines(program)


def test_as_nitro_cli_the_files_are_as_linuxkit_leaves_them() -> None:
    shared = Node.file(b"linked", 0o600)
    tree = image(**{"etc/hosts": "10.0.0.1 x", "etc/hostname": "h", ".dockerenv": ""})
    tree.add("usr/a", shared)
    tree.add("usr/lib/b", shared)

    found = unpack(tree, Launch(("x",), workdir="/srv", user="1:1"), nitro_cli=True)

    assert bytes(found["rootfs/etc/hosts"].data).startswith(b"127.0.0.1       localhost\n")
    assert found["rootfs/etc/mtab"].target == "/proc/mounts"
    assert found["rootfs/usr/lib/b"].target == "../a"
    for path in ("rootfs/etc/hostname", "rootfs/.dockerenv", "user", "workdir"):
        assert path not in found


def test_the_first_ramdisk_lists_modules_in_order() -> None:
    found = tree_of(read_ramdisk(memoryview(bootstrap_ramdisk(b"init", [("vsock", b"1"), ("nsm", b"2")]))))

    assert bytes(found["modules.load"].data) == b"/modules/000-vsock.ko\n/modules/001-nsm.ko\n"
    assert bytes(found["modules/001-nsm.ko"].data) == b"2"
    assert found["init"].mode == stat.S_IFREG | 0o755


def test_awss_first_ramdisk_is_as_linuxkit_writes_it() -> None:
    entries = list(read_ramdisk(memoryview(aws_bootstrap_ramdisk(b"init", b"nsm"))))

    assert [(entry.path, oct(entry.node.mode)) for entry in entries] == [
        ("dev", "0o40755"),
        ("init", "0o100755"),
        ("nsm.ko", "0o100755"),
    ]
    assert {entry.mtime for entry in entries} == {LINUXKIT_MTIME}
    assert [entry.inode for entry in entries] == [721, 722, 723]
    assert [entry.links for entry in entries] == [2, 1, 1]


def test_a_directory_becomes_roots_with_links_and_modes(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir(mode=0o755)
    (tmp_path / "bin/a").write_bytes(b"a" * (2 << 20))
    (tmp_path / "bin/a").chmod(0o4755)
    (tmp_path / "bin/b").hardlink_to(tmp_path / "bin/a")
    (tmp_path / "l").symlink_to("/bin/a")
    with ExitStack() as stack:
        tree = read_rootfs(tmp_path, stack)

        assert tree["bin/a"] is tree["bin/b"]
        assert (tree["bin/a"].mode & 0o7777, tree["bin/a"].uid) == (0o4755, 0)
        assert bytes(tree["bin/a"].data) == b"a" * (2 << 20)
        assert tree["l"].target == "/bin/a"
        assert {tree[path].device for path in ("bin", "bin/a", "l")} == {(0, 0)}


def test_an_archive_keeps_owners_and_says_what_is_dropped(tmp_path: Path) -> None:
    import gzip

    pax = {"SCHILY.xattr.security.capability": "cap", "SCHILY.xattr.user.note": "n"}
    archive = tmp_path / "root.tar.gz"
    archive.write_bytes(gzip.compress(tar_of([(tar_member("ping", uid=5, gid=6, pax=pax), b"elf")])))
    with ExitStack() as stack:
        tree = read_rootfs(archive, stack)

        assert (tree["ping"].uid, tree["ping"].gid) == (5, 6)
        assert dropped_xattrs(tree) == {"security.capability": 1, "user.note": 1}
        with pytest.raises(HostError):
            read_rootfs(tmp_path / "missing", stack)
