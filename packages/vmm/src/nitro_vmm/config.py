"""What can be chosen about one enclave: one frozen model, whoever fills it.

Flags, environment variables, files and Python build the same object, see `nitro_vmm.config_sources`. What
excludes what is decided here.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from nitro_nsm import InstanceId, RoleArn
from nitro_nsm.kms.config import KmsConfig
from nitro_vmm.address_map import PROCESSORS_MAX
from nitro_vmm.defaults import BOOT_TIMEOUT_S_DEFAULT, CID_DEFAULT, MEMORY_MIB_MIN, REGION_DEFAULT


def _encodable(text: str) -> str:
    try:
        text.encode()  # arguments of a command line need not be UTF-8, and Python keeps what is not
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8") from None
    return text


def _cid(cid: int) -> int:
    if cid in {1, 2, 3}:
        raise ValueError("must be 0, for a free one, or at least 4: 1 and 2 are reserved, 3 is the parent's")
    return cid


def _host(name: str) -> str:
    try:
        name.encode("idna")  # as the resolver will
    except UnicodeError:
        raise ValueError(f"{name!r} is no host name") from None
    return name


Utf8 = Annotated[str, AfterValidator(_encodable)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
VsockPort = Annotated[int, Field(ge=1, lt=0xFFFF_FFFF)]
TcpPort = Annotated[int, Field(ge=0, le=0xFFFF)]


class _Frozen(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True
    )


class Endpoint(_Frozen):
    """A TCP endpoint."""

    host: Annotated[Utf8, AfterValidator(_host)]
    """Name or address; IPv6 addresses stand in brackets in the text form."""
    port: TcpPort
    """TCP port; where this machine listens, 0 is a free one."""

    @classmethod
    def parse(cls, value: object) -> object:
        """``HOST:PORT``; what is no text is returned as it is.

        Raises:
            ValueError: It is some other text.
        """
        if not isinstance(value, str):
            return value
        host, separator, port = value.rpartition(":")
        if not separator or not host or not port.isdecimal():
            raise ValueError("must be HOST:PORT")
        return {"host": host.removeprefix("[").removesuffix("]"), "port": int(port)}

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _debugger(value: object) -> object:
    """``[ADDRESS:]PORT``; without an address it is 127.0.0.1, because a debugger may do anything."""
    if type(value) is int or (isinstance(value, str) and value.isdecimal()):
        return {"host": "127.0.0.1", "port": int(value)}
    try:
        return Endpoint.parse(value)
    except ValueError:
        raise ValueError("must be [ADDRESS:]PORT") from None


class Proxied(_Frozen):
    """A port of the parent through which the enclave reaches a TCP endpoint."""

    port: VsockPort
    """What the enclave connects to, at CID 3."""
    target: Annotated[Endpoint, BeforeValidator(Endpoint.parse)]
    """Where that leads."""

    @classmethod
    def parse(cls, value: object) -> object:
        """``PORT=HOST:PORT``; what is no text is returned as it is.

        Raises:
            ValueError: It is some other text.
        """
        if not isinstance(value, str):
            return value
        port, separator, target = value.partition("=")
        if not separator or not port.isdecimal():
            raise ValueError("must be PORT=HOST:PORT")
        return {"port": int(port), "target": target}


class Published(_Frozen):
    """A port of the enclave that this machine's programs reach."""

    listen: Endpoint | Path
    """Where they connect: a TCP endpoint, whose port 0 is a free one, or a unix socket."""
    port: VsockPort
    """The enclave's."""

    @classmethod
    def parse(cls, value: object) -> object:
        """``[ADDRESS:]PORT:ENCLAVE_PORT`` or ``unix:PATH:ENCLAVE_PORT``; what is no text is returned.

        The address is 127.0.0.1 where none is given, because an enclave under test is nobody else's business.

        Raises:
            ValueError: It is some other text.
        """
        if not isinstance(value, str):
            return value
        listen, separator, port = value.rpartition(":")
        if not separator or not port.isdecimal():
            raise ValueError("must be [ADDRESS:]PORT:ENCLAVE_PORT or unix:PATH:ENCLAVE_PORT")
        if listen.startswith("unix:"):
            return {"listen": Path(listen.removeprefix("unix:")), "port": int(port)}
        if listen.isdecimal():
            listen = f"127.0.0.1:{listen}"
        return {"listen": Endpoint.parse(listen), "port": int(port)}


class KmsSettings(KmsConfig):
    """A local KMS for the enclave: the fields of `nitro_nsm`'s, and where it is found.

    What is not given follows the enclave: the region, and the parent's role as the caller.
    """

    port: VsockPort = 8000
    """The parent's port, at CID 3. Most programs expect vsock-proxy to lead from port 8000 to KMS."""
    listen: Annotated[Endpoint, BeforeValidator(Endpoint.parse)] | None = None
    """Where this machine's programs, such as ``aws kms``, reach it as well; port 0 is a free one."""

    @classmethod
    def parse(cls, value: object) -> object:
        """A truth value, or ``NAME=VALUE[,NAME=VALUE...]``; what is neither is returned as it is.

        Raises:
            ValueError: It is some other text.
        """
        match value:
            case True | "":
                return {}
            case False:
                return None
            case str(text):
                pairs = [part.partition("=") for part in text.split(",")]
                if not all(separator for _, separator, _ in pairs):
                    raise ValueError("must be a file, or NAME=VALUE[,NAME=VALUE...]")
                return {name: given for name, _, given in pairs}
        return value


class EnclaveConfig(_Frozen):
    """One enclave, as ``vmm run`` launches it."""

    eif_path: Path
    """The image; may be left out where ``snapshot_path`` is given."""

    snapshot_path: Path | None = None
    """A file of ``vmm snapshot``: the enclave goes on from there instead of booting. With an image, it must
    be that image's."""

    warm: Literal["off", "kernel", "image"] = "off"
    """Whether to go on from a saved machine of the cache, and to make one in the background where there is
    none: "kernel" for one that serves every image with this kernel, because it was saved before the ramdisks
    are unpacked; "image" for one that was saved before the first instruction of the image's first program."""

    name: Name | None = None
    """What ``vmm ps`` and the others call it; `None`: the image's file name without .eif, and a number if
    that is taken."""

    memory_mib: Annotated[int, Field(ge=MEMORY_MIB_MIN, le=1 << 20)] | None = None
    """The enclave's memory; `None`: 512 MiB, or four times the image's size if that is more."""

    processors: Annotated[int, Field(ge=1, le=PROCESSORS_MAX)] | None = None
    """How many processors it gets; `None`: two with KVM, as on Nitro. The emulated machine has one, and says
    so where more are asked for."""

    accelerator: Literal["auto", "kvm", "unicorn"] = "auto"
    """What runs the guest: the host's processor (KVM), or an emulated one (Unicorn). "auto" takes KVM where
    it can run Linux, and says why where it cannot."""

    cid: Annotated[int, Field(ge=0, lt=0xFFFF_FFFF), AfterValidator(_cid)] = CID_DEFAULT
    """The enclave's vsock address; 0: a free one from 16 on. 1, 2 and 2**32-1 are reserved, 3 is the
    parent's."""

    cmdline_append: Utf8 = ""
    """Added to the image's kernel command line, and not measured."""

    quiet_kernel: bool = False
    """Add ``quiet`` to the kernel's command line: it then prints errors only, and boots faster. It is not
    measured, and before ``cmdline_append``, which wins."""

    vsock_path: Path | None = None
    """Unix socket that programs connect to and say ``CONNECT port``; with ``_port`` appended, the sockets
    that the enclave's connections to its parent go to. `None`: there are none."""

    seqpacket: bool = False
    """Offer the enclave SEQPACKET connections as well, which AWS's parents do not: on the host they are
    SOCK_SEQPACKET unix sockets, see `VsockConfig.seqpacket`."""

    vhost_user_path: Path | None = None
    """A vhost-user-vsock daemon's socket: it serves vsock, instead of this process."""

    vhost_user_stats_path: Path | None = None
    """What that daemon got as ``--stats``: where it tells of the heartbeat, which it gets (``--heartbeat``).
    `None`: nobody here learns that the enclave has booted, so that it may take for ever."""

    publish: tuple[Annotated[Published, BeforeValidator(Published.parse)], ...] = ()
    """Ports of the enclave that this machine's programs reach over TCP or unix sockets."""

    proxy: tuple[Annotated[Proxied, BeforeValidator(Proxied.parse)], ...] = ()
    """Ports of the parent through which the enclave reaches TCP endpoints."""

    allow: tuple[Annotated[Endpoint, BeforeValidator(Endpoint.parse)], ...] = ()
    """TCP endpoints that the enclave may reach by name through an HTTP proxy (CONNECT) on port 3128 of its
    parent. A name that begins with ``*.`` allows all names that end so. None: there is no such proxy."""

    kms: Annotated[KmsSettings | None, BeforeValidator(KmsSettings.parse)] = None
    """A local KMS on a port of the parent, which checks the enclave's documents; it needs the extra
    ``nitro-vmm[kms]``. True: with its defaults. None: there is none."""

    boot_timeout_s: Annotated[float, Field(gt=0)] = BOOT_TIMEOUT_S_DEFAULT
    """How long the heartbeat may take, as long as nitro-cli waits at least."""

    debug_mode: bool = False
    """Report PCR0, PCR1, PCR2 and PCR8 as zero, as AWS does for an enclave with a console."""

    console: bool | None = None
    """Show the console to the user; `None`: in debug mode only, as on AWS. Programs that launch the enclave
    themselves have it as `Enclave.console` in any case."""

    gdb: Annotated[Endpoint, BeforeValidator(_debugger)] | None = None
    """Where GDB is waited for, port 0 is a free one; the guest begins when it says so. Documents do not show
    that a debugger is attached. `None`: nowhere."""

    role_arn: RoleArn | None = None
    """The parent instance's IAM role, measured into PCR3."""

    instance_id: InstanceId | None = None
    """The parent instance, measured into PCR4."""

    enclave_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    """The enclave's own part of its name, 16 hexadecimal digits; `None`: made of the time and chance."""

    region: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,20}$")] = REGION_DEFAULT
    """The AWS region that the security module's certificates name."""

    root_key: Path | None = None
    """PEM file of the private key that documents are signed under, instead of the test root; its certificate
    stands in the same file, or in that of ``root_cert``."""

    root_cert: Path | None = None
    """PEM file of the certificate that belongs to ``root_key``."""

    @property
    def shows_console(self) -> bool:
        """Whether the user sees the console and may type on it."""
        return self.debug_mode if self.console is None else self.console

    @property
    def begins_at_once(self) -> bool:
        """Whether the guest may run before anything else is there: a daemon, a debugger."""
        return self.vhost_user_path is None and self.gdb is None

    @property
    def connects_at_once(self) -> bool:
        """Whether its vsock needs nothing of an event loop to be made: a proxy, a published port, a KMS."""
        return self.begins_at_once and not (self.publish or self.proxy or self.allow or self.kms)

    @model_validator(mode="before")
    @classmethod
    def _image_of_snapshot(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("snapshot_path") is not None:
            return {"eif_path": data["snapshot_path"], **data}
        return data

    @model_validator(mode="after")
    def _one_vsock(self) -> Self:
        if self.vhost_user_path is None:
            if self.vhost_user_stats_path is not None:
                raise ValueError("vhost_user_stats_path needs vhost_user_path: the socket of the same daemon")
            return self
        if self.vsock_path is not None:
            raise ValueError(
                "vhost_user_path and vsock_path exclude each other: give the daemon its own --uds-path"
            )
        if self.snapshot_path is not None or self.warm != "off":
            raise ValueError("vhost_user_path and saved machines exclude each other: leave one out")
        if self.seqpacket:
            raise ValueError("vhost_user_path and seqpacket exclude each other: give the daemon --seqpacket")
        for field in ("publish", "proxy", "allow"):
            if getattr(self, field):
                raise ValueError(f"vhost_user_path and {field} exclude each other: give it to the daemon")
        if self.kms is not None:
            raise ValueError(
                "vhost_user_path and kms exclude each other: give the daemon --proxy 8000=HOST:PORT, and let "
                "nsm kms serve listen there"
            )
        return self

    @model_validator(mode="after")
    def _one_use_of_a_port(self) -> Self:
        ports = [proxied.port for proxied in self.proxy]
        if len(set(ports)) != len(ports):
            raise ValueError("proxy leads from one port to two endpoints: give each port once")
        if self.kms is not None and self.kms.port in ports:
            raise ValueError("proxy and kms have the same port: give kms another one, such as port=8001")
        return self

    @model_validator(mode="after")
    def _certificate_of_a_key(self) -> Self:
        if self.root_cert is not None and self.root_key is None:
            raise ValueError("root_cert needs root_key: the key that documents are signed with")
        return self
