"""One enclave's configuration where no value needs a check that takes pydantic: that of most command lines.

Importing pydantic and building `EnclaveConfig` takes longer than all else that `vmm run` does before its
guest runs. So a launch takes either of the two. `nitro_vmm.cli.configure` knows when this one will do.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeAlias

from nitro_vmm.defaults import BOOT_TIMEOUT_S_DEFAULT, CID_DEFAULT, REGION_DEFAULT

if TYPE_CHECKING:
    from nitro_vmm.config import EnclaveConfig


class PlainChoices(NamedTuple):
    """What can be chosen, with the names of `EnclaveConfig`'s fields. Nothing is checked."""

    eif_path: Path
    snapshot_path: Path | None = None
    warm: Literal["off", "kernel", "image"] = "off"
    memory_mib: int | None = None
    accelerator: Literal["auto", "kvm", "unicorn"] = "auto"
    cid: int = CID_DEFAULT
    quiet_kernel: bool = False
    vsock_path: Path | None = None
    seqpacket: bool = False
    debug_mode: bool = False
    console: bool | None = None


class PlainConfig(PlainChoices):
    """The rest of `EnclaveConfig`, which is as it is there by default."""

    __slots__ = ()
    name: ClassVar[None] = None
    processors: ClassVar[None] = None
    cmdline_append: ClassVar[str] = ""
    vhost_user_path: ClassVar[None] = None
    vhost_user_stats_path: ClassVar[None] = None
    publish: ClassVar[tuple[()]] = ()
    proxy: ClassVar[tuple[()]] = ()
    allow: ClassVar[tuple[()]] = ()
    kms: ClassVar[None] = None
    boot_timeout_s: ClassVar[float] = BOOT_TIMEOUT_S_DEFAULT
    gdb: ClassVar[None] = None
    role_arn: ClassVar[None] = None
    instance_id: ClassVar[None] = None
    enclave_id: ClassVar[None] = None
    region: ClassVar[str] = REGION_DEFAULT
    root_key: ClassVar[None] = None
    root_cert: ClassVar[None] = None

    @property
    def shows_console(self) -> bool:
        """See `EnclaveConfig.shows_console`."""
        return self.debug_mode if self.console is None else self.console

    @property
    def begins_at_once(self) -> bool:
        """See `EnclaveConfig.begins_at_once`."""
        return True

    @property
    def connects_at_once(self) -> bool:
        """See `EnclaveConfig.connects_at_once`."""
        return True

    def checked(self) -> "EnclaveConfig":
        """The same as the model."""
        from nitro_vmm.config import EnclaveConfig  # noqa: PLC0415 - takes pydantic

        return EnclaveConfig(**self._asdict())


EnclaveSettings: TypeAlias = "EnclaveConfig | PlainConfig"
"""What a launch is told."""
