"""What can be chosen about one enclave."""

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from nitro_nsm import InstanceId, RoleArn
from nitro_vmm.defaults import BOOT_TIMEOUT_S_DEFAULT, CID_DEFAULT, MEMORY_MIB_MIN


def _encodable(text: str) -> str:
    text.encode()  # arguments of a command line need not be UTF-8, and Python keeps what is not
    return text


Utf8 = Annotated[str, AfterValidator(_encodable)]


class EnclaveConfig(BaseModel):
    """One enclave, as ``vmm run`` launches it."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    eif_path: Path
    """The image."""

    memory_mib: Annotated[int, Field(ge=MEMORY_MIB_MIN, le=1 << 20)] | None = None
    """The enclave's memory; `None`: 512 MiB, or four times the image's size if that is more."""

    cid: Annotated[int, Field(ge=4, lt=0xFFFF_FFFF)] = CID_DEFAULT
    """The enclave's vsock address; 0 to 2 and 2**32-1 are reserved, 3 is the parent's."""

    cmdline_append: Utf8 = ""
    """Added to the image's kernel command line, and not measured."""

    vsock_path: Path | None = None
    """Unix socket that programs connect to and say ``CONNECT port``; with ``_port`` appended, the sockets
    that the enclave's connections to its parent go to. `None`: there are none."""

    seqpacket: bool = False
    """Offer the enclave SEQPACKET connections as well, which AWS's parents do not: on the host they are
    SOCK_SEQPACKET unix sockets, see `VsockConfig.seqpacket`."""

    vhost_user_path: Path | None = None
    """A vhost-user-vsock daemon's socket: it serves vsock, instead of this process."""

    boot_timeout_s: Annotated[float, Field(gt=0)] = BOOT_TIMEOUT_S_DEFAULT
    """How long the heartbeat may take, as long as nitro-cli waits at least."""

    debug_mode: bool = False
    """Report PCR0, PCR1, PCR2 and PCR8 as zero, as AWS does for an enclave with a console."""

    role_arn: RoleArn | None = None
    """The parent instance's IAM role, measured into PCR3."""

    instance_id: InstanceId | None = None
    """The parent instance, measured into PCR4."""

    @model_validator(mode="after")
    def _one_vsock(self) -> Self:
        if self.vhost_user_path is not None and self.vsock_path is not None:
            raise ValueError(
                "vhost_user_path and vsock_path exclude each other: give the daemon its own --uds-path"
            )
        if self.vhost_user_path is not None and self.seqpacket:
            raise ValueError("vhost_user_path and seqpacket exclude each other: give the daemon --seqpacket")
        return self
