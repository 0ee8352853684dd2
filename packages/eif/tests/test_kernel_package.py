import gzip
import lzma
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containers import zstd
from debian_packages import (
    CONFIG,
    KERNEL,
    VERSION,
    ar,
    built_rpm,
    deb,
    directory_only,
    module,
    package,
    rpm,
)
from nitro_eif import Architecture, EifFormatError, HostError, Node, UsageError, read_blobs, read_package
from nitro_eif.build.kernel_package import module_dependencies, module_name
from nitro_eif.build.packages import unpack_packages
from nitro_eif.cli import main
from nitro_eif.testing import example_ramdisk

MODULES = {
    "net/vmw_vsock/vsock.ko.xz": lzma.compress(module()),
    "net/vmw_vsock/vmw-vsock-virtio-transport.ko": module("vsock", "common"),
    "lib/common.ko": module("vsock"),
    "drivers/misc/nsm.ko.xz": lzma.compress(module("rng-core")),
    "drivers/char/rng-core.ko": module(),
    "drivers/unused.ko": module(),
}


@pytest.mark.parametrize(("how", "root"), [("xz", "usr/"), ("zst", "")])
def test_a_package_gives_kernel_modules_and_what_they_need_in_order(
    tmp_path: Path, how: str, root: str
) -> None:
    builtin = "kernel/drivers/virtio/virtio_mmio.ko\n"
    modules = MODULES | ({"lib/common.ko.zst": zstd(MODULES["lib/common.ko"])} if how == "zst" else {})
    path = package(tmp_path / "linux.deb", modules, builtin=builtin, how=how, root=root)
    with ExitStack() as stack:
        kernel = read_package(path, Architecture.X86_64, stack)

        assert bytes(kernel.image) == KERNEL
        assert [name for name, _ in kernel.modules] == [
            "vsock",
            "common",
            "vmw_vsock_virtio_transport",
            "rng_core",
            "nsm",
        ]
        assert dict(kernel.modules)["vsock"] == module()
        assert kernel.config == CONFIG.decode()
        assert kernel.missing == ()


def test_missing_modules_are_named(tmp_path: Path) -> None:
    path = package(tmp_path / "linux.deb", {"vsock.ko": module("gone")})
    with ExitStack() as stack:
        assert read_package(path, Architecture.X86_64, stack, modules=["vsock", "nsm"]).missing == (
            "gone",
            "nsm",
        )


def test_modules_that_need_each_other_do_not_loop(tmp_path: Path) -> None:
    path = package(tmp_path / "linux.deb", {"a.ko": module("b"), "b.ko": module("a")})
    with ExitStack() as stack:
        kernel = read_package(path, Architecture.X86_64, stack, modules=["a"])
        assert [name for name, _ in kernel.modules] == ["b", "a"]


def test_broken_packages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.deb"
    good = package(tmp_path / "good.deb", {"a.ko": b"not ELF"}).read_bytes()
    with ExitStack() as stack:
        for data in (
            b"",
            b"PK",
            ar({"debian-binary": b""}),
            good[:200],
            good[:-300],
            b"!<arch>\n" + b"x" * 60,
        ):
            path.write_bytes(data)
            with pytest.raises(EifFormatError, match=r"x\.deb"):
                read_package(path, Architecture.X86_64, stack)
        with pytest.raises(UsageError, match="there is no kernel"):
            read_package(directory_only(path), Architecture.X86_64, stack)
        with pytest.raises(EifFormatError, match=r"a\.ko: not a kernel module"):
            read_package(tmp_path / "good.deb", Architecture.X86_64, stack, modules=["a"])
        with pytest.raises(HostError):
            read_package(tmp_path / "missing.deb", Architecture.X86_64, stack)


@given(
    st.binary(max_size=300)
    | st.integers(0, 330).map(lambda at: module("a")[:at] + b"\xff" + module("a")[at + 1 :])
)
def test_any_bytes_are_a_module_or_a_format_error(data: bytes) -> None:
    with suppress(EifFormatError):
        module_dependencies(data)


def test_names_of_modules() -> None:
    assert module_name("kernel/a/vmw-vsock.ko.xz") == "vmw_vsock"


def test_blobs_are_read_from_their_directory_or_the_one_above(tmp_path: Path) -> None:
    blobs = tmp_path / "x86_64"
    blobs.mkdir()
    for name, data in {"bzImage": b"k", "cmdline": b"reboot=k \n", "init": b"i"}.items():
        (blobs / name).write_bytes(data)
    with ExitStack() as stack:
        kernel = read_blobs(tmp_path, Architecture.X86_64, stack)
        assert (bytes(kernel.image), kernel.cmdline, kernel.init, kernel.nsm) == (
            b"k",
            "reboot=k",
            b"i",
            None,
        )
        (blobs / "nsm.ko").write_bytes(b"nsm")
        assert read_blobs(blobs, Architecture.X86_64, stack).nsm == b"nsm"
        with pytest.raises(HostError, match="Image"):
            read_blobs(tmp_path, Architecture.AARCH64, stack)


def files_of_kernel(*, boot: bool, modules: dict[str, bytes]) -> dict[str, bytes]:
    root = f"usr/lib/modules/{VERSION}"
    kernel = {f"boot/vmlinuz-{VERSION}": KERNEL} if boot else {f"{root}/vmlinuz": KERNEL}
    config = {f"{root}/config": CONFIG}
    return kernel | config | {f"{root}/kernel/{name}": data for name, data in modules.items()}


def split(tmp_path: Path, kind: str, *, boot: bool) -> list[Path]:
    """A kernel in one package and its modules in another."""
    pack = {"deb": deb, "rpm": rpm}[kind]
    first, second = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    first.write_bytes(pack(files_of_kernel(boot=boot, modules={})))
    modules = {f"usr/lib/modules/{VERSION}/kernel/{name}": data for name, data in MODULES.items()}
    second.write_bytes(pack(modules))
    return [first, second]


@pytest.mark.parametrize("kind", ["deb", "rpm"])
@pytest.mark.parametrize("boot", [True, False])
def test_kernels_that_are_split_into_packages_are_put_together(
    tmp_path: Path, kind: str, boot: object
) -> None:
    paths = split(tmp_path, kind, boot=bool(boot))
    with ExitStack() as stack:
        for given in (paths, paths[::-1], [tmp_path], tmp_path):
            kernel = read_package(given, Architecture.X86_64, stack, modules=["nsm", "vsock"])

            assert bytes(kernel.image) == KERNEL
            assert [name for name, _ in kernel.modules] == ["rng_core", "nsm", "vsock"]
            assert kernel.config == CONFIG.decode()
        with pytest.raises(UsageError, match="there is no kernel") as caught:
            read_package(paths[1], Architecture.X86_64, stack)
        assert "kernel-core" in caught.value.hint


@pytest.mark.parametrize("how", ["gzip", "xz", "zstd", "none"])
def test_rpms_are_read_however_they_are_compressed(tmp_path: Path, how: str) -> None:
    path = tmp_path / "kernel.rpm"
    path.write_bytes(rpm(files_of_kernel(boot=False, modules={"vsock.ko": module()}), how))
    with ExitStack() as stack:
        kernel = read_package(path, Architecture.X86_64, stack, modules=["vsock"])

        assert bytes(kernel.image) == KERNEL
        assert [name for name, _ in kernel.modules] == ["vsock"]


@pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="no rpmbuild; Debian's package is rpm")
@pytest.mark.parametrize("payload", ["w9.zstdio", "w2.xzdio", "w9.gzdio"])
def test_rpms_are_read_as_rpmbuild_makes_them(tmp_path: Path, payload: str) -> None:
    files = files_of_kernel(boot=False, modules={"vsock.ko": module()})
    path = built_rpm(tmp_path, files, payload)

    with ExitStack() as stack:
        kernel = read_package(path, Architecture.X86_64, stack, modules=["vsock"])

        assert bytes(kernel.image) == KERNEL
        assert kernel.modules == (("vsock", module()),)
        assert kernel.config == CONFIG.decode()


def test_an_rpm_whose_archive_has_no_names_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "x.rpm"
    whole = rpm({}, "none")
    archive = whole.index(b"070701")
    path.write_bytes(whole[:archive] + gzip.compress(b"07070X" + b"00000000"))

    with (
        ExitStack() as stack,
        pytest.raises(EifFormatError, match="have their names in its header") as caught,
    ):
        read_package(path, Architecture.X86_64, stack)

    assert caught.value.offset == archive
    assert "rpm2archive" in caught.value.hint


def test_an_rpm_puts_nothing_outside_of_its_root(tmp_path: Path) -> None:
    files = files_of_kernel(boot=False, modules={}) | {"../boot/vmlinuz-evil": KERNEL, "a/../../b": b"1"}
    path = tmp_path / "x.rpm"
    archive = example_ramdisk(
        {".": Node.directory()} | {name: Node.file(data) for name, data in files.items()}
    )
    whole = rpm({}, "none")
    path.write_bytes(whole[: whole.index(b"070701")] + archive)

    with ExitStack() as stack:
        tree = unpack_packages([path], stack)

        assert sorted(tree.names("")) == ["usr"]
        assert bytes(read_package(path, Architecture.X86_64, stack, modules=[]).image) == KERNEL


def test_several_kernels_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(deb({"boot/vmlinuz-1": KERNEL, "boot/vmlinuz-2": KERNEL}))
    with ExitStack() as stack, pytest.raises(UsageError, match="several kernels: 1, 2"):
        read_package(path, Architecture.X86_64, stack)


def test_a_directory_without_packages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with ExitStack() as stack, pytest.raises(UsageError, match="there is no package in this directory"):
        read_package(tmp_path, Architecture.X86_64, stack)


def test_every_truncated_rpm_is_refused(tmp_path: Path) -> None:
    whole = rpm({"a": b"1"}, "gzip")
    path = tmp_path / "x.rpm"
    with ExitStack() as stack:
        for size in range(4, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises((EifFormatError, UsageError)):
                read_package(path, Architecture.X86_64, stack)


def test_the_command_line_takes_several_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = split(tmp_path, "rpm", boot=False)
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "init").write_bytes(b"init")
    arguments = ["--rootfs", str(root), "--cmd", "/app", "--init", str(tmp_path / "init")]
    for path in paths:
        arguments += ["--kernel-package", str(path)]

    assert main(["build", *arguments, "--output", str(tmp_path / "x.eif")]) == 0
    assert f"eif: warning: {paths[0]}, {paths[1]} has no module virtio_mmio" in capsys.readouterr().err
    assert main(["build", *arguments, "--module", "gone", "--output", str(tmp_path / "x.eif")]) == 2


def test_what_modules_have_together_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = package(tmp_path / "linux.deb", {"a.ko": module(), "b.ko": module()})
    both = 2 * len(module())
    with ExitStack() as stack:
        monkeypatch.setattr("nitro_eif.build.kernel_package.ALL_MODULES_BYTES_MAX", both)
        assert len(read_package(path, Architecture.X86_64, stack, modules=["a", "b"]).modules) == 2
        monkeypatch.setattr("nitro_eif.build.kernel_package.ALL_MODULES_BYTES_MAX", both - 1)
        with pytest.raises(EifFormatError, match="the modules have more than"):
            read_package(path, Architecture.X86_64, stack, modules=["a", "b"])


def test_a_module_may_have_64_mebibytes() -> None:
    from nitro_eif.build.kernel_package import MODULE_BYTES_MAX, decompressed_module

    assert MODULE_BYTES_MAX == 64 << 20
    assert len(decompressed_module(lzma.compress(bytes(MODULE_BYTES_MAX), preset=0))) == MODULE_BYTES_MAX
    with pytest.raises(EifFormatError, match="a module of more than"):
        decompressed_module(lzma.compress(bytes(MODULE_BYTES_MAX + 1), preset=0))


@pytest.mark.parametrize("other", ["zz-config-9", "vmlinuz", "vmlinux"])
def test_what_else_is_in_boot_is_no_kernel(tmp_path: Path, other: str) -> None:
    path = tmp_path / "linux.deb"
    files = {f"boot/vmlinuz-{VERSION}": KERNEL, f"boot/{other}": b"no kernel"}
    path.write_bytes(deb(files | {f"lib/modules/{VERSION}/modules.builtin": b""}))

    with ExitStack() as stack:
        kernel = read_package(path, Architecture.X86_64, stack, modules=[])

        assert bytes(kernel.image) == KERNEL
