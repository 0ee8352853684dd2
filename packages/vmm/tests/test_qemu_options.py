"""Command lines of QEMU's nitro-enclave machine, as settings."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm import UsageError
from nitro_vmm.config import EnclaveConfig
from nitro_vmm.config_sources import load_config
from nitro_vmm.qemu_options import read_qemu
from vmm_command import Vmm

MACHINE = "-M nitro-enclave -kernel hello.eif"


WORDS = (
    "-M",
    "-m",
    "-accel",
    "-smp",
    "-chardev",
    "-name",
    "id=c",
    "c",
    "=",
    ",",
    ",,,",
    "accel=",
    "thread=1",
)


def config(text: str, **flags: object) -> EnclaveConfig:
    return load_config(flags, qemu=read_qemu(text), environment={})


def test_a_whole_command_line() -> None:
    """The one of QEMU's documentation, with what people add to it."""
    text = """qemu-system-x86_64 -M nitro-enclave,vsock=c,id=hello-world,parent-id=i-0123456789abcdef0
    -machine parent-role=arn:aws:iam::123456789012:role/x
    -kernel hello-world.eif -nographic -m 4G --enable-kvm -cpu host -smp cpus=2
    -chardev socket,id=c,path=/run/vhost4.socket -append 'quiet loglevel=3'"""

    options = read_qemu(text)

    assert load_config({}, qemu=options, environment={}) == EnclaveConfig(
        eif_path=Path("hello-world.eif"),
        name="hello-world",
        memory_mib=4096,
        processors=2,
        accelerator="kvm",
        vhost_user_path=Path("/run/vhost4.socket"),
        role_arn="arn:aws:iam::123456789012:role/x",
        instance_id="i-0123456789abcdef0",
        cmdline_append="quiet loglevel=3",
        console=True,
    )
    assert options.left_out == ["-nographic", "-cpu host"]


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        (f"{MACHINE} -m 512", "memory_mib", 512),
        (f"{MACHINE} -m size=1.5G,slots=2", "memory_mib", 1536),
        (f"{MACHINE} -m 1048576k", "memory_mib", 1024),
        (f"{MACHINE} -smp 2,sockets=1", "processors", 2),
        (f"{MACHINE} -accel tcg,thread=multi", "accelerator", "unicorn"),
        (f"{MACHINE} -accel kvm -accel tcg", "accelerator", "auto"),
        (f"{MACHINE} -machine accel=kvm:tcg", "accelerator", "auto"),
        (f"{MACHINE} -name guest=one,debug-threads=on", "name", "one"),
        (
            "-M nitro-enclave,id=i-0123456789abcdef0-enc0123456789abcdef -kernel a",
            "enclave_id",
            "0123456789abcdef",
        ),
        ("-M nitro-enclave,id=two -name one -kernel a", "name", "one"),
        (f"{MACHINE} -append console=ttyS0,,115200", "cmdline_append", "console=ttyS0,,115200"),
        (
            "-M nitro-enclave,vsock=c -chardev socket,id=c,path=/a,,b -kernel a",
            "vhost_user_path",
            Path("/a,b"),
        ),
    ],
)
def test_one_option(text: str, field: str, value: object) -> None:
    assert getattr(config(text), field) == value


def test_flags_win() -> None:
    assert config(f"{MACHINE} -m 1G -smp 4", memory_mib=256).memory_mib == 256


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no machine nitro-enclave"),
        ("-M q35 -kernel a", "'q35' is not nitro-enclave"),
        ("-M nitro-enclave,vsock=c -kernel a", "names no -chardev"),
        ("-M nitro-enclave,vsock=c -chardev pty,id=c -kernel a", "not a unix socket"),
        ("-M nitro-enclave,kernel-irqchip=off -kernel a", "kernel-irqchip= is not known"),
        (f"{MACHINE} -initrd extra.cpio", "adds to what is measured"),
        (f"{MACHINE} -device virtio-net-pci", "-device is not known"),
        (f"{MACHINE} -m 100k", "not a number of MiB"),
        (f"{MACHINE} -m much", "not a number of MiB"),
        (f"{MACHINE} -accel hvf", "'hvf' is not known"),
        (f"{MACHINE} disk.img", "'disk.img' is a disk"),
        (f"{MACHINE} -smp", "-smp needs a value"),
        (f"{MACHINE} -m =", "cannot be read"),
        (f"{MACHINE} 'unfinished", "quote it"),
    ],
)
def test_what_cannot_be_had_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_qemu(text)

    assert why in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{MACHINE} -smp many", "-smp many: must be a whole number"),
        ("-M nitro-enclave,parent-id=me -kernel a", "-M parent-id= me"),
        ("-M nitro-enclave,parent-role=me -kernel a", "-M parent-role= me"),
    ],
)
def test_messages_say_it_as_it_was_written(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        config(text)

    assert why in str(refused.value)


@given(st.text() | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_any_text_is_options_or_one_error(text: str) -> None:
    with suppress(UsageError):
        read_qemu(f"-M nitro-enclave {text}")


def test_vmm_run_takes_it(vmm: Vmm, image: Path) -> None:
    ran = vmm(
        "run", "--from-qemu", f"qemu-system-x86_64 -M nitro-enclave -kernel {image} -m 64M -display none"
    )

    assert ran.returncode == 0, ran.stderr
    assert "QEMU's -display none changes nothing here" in ran.stderr
    assert "in 64 MiB" in ran.stderr
