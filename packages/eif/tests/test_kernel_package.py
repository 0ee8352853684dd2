import lzma
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containers import zstd
from debian_packages import CONFIG, KERNEL, ar, directory_only, module, package
from nitro_eif import Architecture, EifFormatError, HostError, UsageError, read_blobs, read_package
from nitro_eif.build.kernel_package import module_dependencies, module_name

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
        with pytest.raises(UsageError, match="depends on"):
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
