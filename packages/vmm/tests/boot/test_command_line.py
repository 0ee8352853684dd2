import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.address_map import virtio_slot
from nitro_vmm.boot.command_line import compose, virtio_mmio
from nitro_vmm.errors import ImageError


@pytest.mark.parametrize(
    ("image", "additions", "composed"),
    [
        (b"console=ttyS0", [b"quiet", b"a=1 b=2"], b"console=ttyS0 quiet a=1 b=2"),
        (b"", [b"quiet"], b"quiet"),
        (b"", [], b""),
        (b"reboot=k\n", [b"", b" ", b"quiet"], b"reboot=k quiet"),
        (b"reboot=k\0\0", [b"quiet"], b"reboot=k quiet"),
        (b"reboot=k -- single", [b"quiet"], b"reboot=k quiet -- single"),
        (b"-- single", [b"quiet"], b"quiet -- single"),
        (b"reboot=k --", [b"quiet"], b"reboot=k quiet --"),
        (b'a="x -- y" --b c=-- ', [b"quiet"], b'a="x -- y" --b c=-- quiet'),
        (b'a="open -- y', [b"quiet"], b'a="open -- y quiet'),
    ],
)
def test_additions_go_where_the_kernel_reads_them(
    image: bytes, additions: list[bytes], composed: bytes
) -> None:
    assert compose(image, additions, bytes_max=2047) == composed


def test_a_device_is_announced_as_the_kernel_reads_it() -> None:
    assert virtio_mmio(virtio_slot(0)) == b"virtio_mmio.device=4K@0xd0000000:5"
    assert virtio_mmio(virtio_slot(1)) == b"virtio_mmio.device=4K@0xd0001000:6"


def test_what_the_kernel_does_not_take_is_refused() -> None:
    assert len(compose(b"x" * 40, [b"quiet"], bytes_max=46)) == 46
    with pytest.raises(ImageError, match=r"is 46 bytes .* takes 45.*\(command line\)"):
        compose(b"x" * 40, [b"quiet"], bytes_max=45)


def test_there_is_a_bound_even_if_the_kernel_says_there_is_none() -> None:
    with pytest.raises(ImageError, match="this kernel takes 65535"):
        compose(b"x" * 65536, [], bytes_max=0xFFFF_FFFF)


def test_a_zero_byte_is_refused() -> None:
    with pytest.raises(ImageError, match="zero byte") as caught:
        compose(b"quiet\0init=/bin/sh", [], bytes_max=2047)
    assert caught.value.offset == 5


@given(st.binary(max_size=100).filter(lambda image: b"added" not in image))
def test_nothing_of_the_image_is_lost(image: bytes) -> None:
    image = image.rstrip(b"\0")
    try:
        words = compose(image, [b"added"], bytes_max=2047).split()
    except ImageError:
        assert b"\0" in image
    else:
        words.remove(b"added")
        assert words == image.split()
