"""Who an enclave is, as its module keeps it: plain values, which nobody checks.

The models of `nitro_nsm.config` check what comes from elsewhere. Importing this is fast, unlike those,
because pydantic takes longer than all the rest of a module.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from nitro_nsm.pcrs import LOCKED_AT_START, PCR_COUNT, ZERO, extended

DEBUG_ZEROED = (0, 1, 2, 8)
"""What debug mode zeroes: all that measures the image. PCR3 and PCR4, which say who runs it, stay."""


REGION_DEFAULT = "us-east-1"
"""The AWS region of enclaves and keys where none is chosen."""


class Identity(NamedTuple):
    """What a module begins with: the fields of `NsmState`."""

    instance_id: str
    """The parent instance."""
    enclave_id: str
    """16 hexadecimal digits that tell apart the enclaves of an instance."""
    region: str
    """Where the enclave says that it runs."""
    payload_map: Literal["indefinite", "definite"]
    """How the outer map of a document's payload is encoded."""
    pcrs: tuple[bytes, ...]
    """Every register, in order."""
    locked: frozenset[int]
    """The registers that can no longer change."""

    @property
    def module_id(self) -> str:
        """The enclave's name on its instance, as in DescribeNSM and documents."""
        return f"{self.instance_id}-enc{self.enclave_id}"


class PlainNsmConfig(NamedTuple):
    """The fields of `NsmConfig` but for the image's certificate, with the same meanings and defaults.

    Nothing is checked: it is for programs that know what they say.
    """

    pcrs: Mapping[int, bytes] = MappingProxyType({})
    role_arn: str | None = None
    debug_mode: bool = False
    region: str = REGION_DEFAULT
    instance_id: str | None = None
    enclave_id: str | None = None
    payload_map: Literal["indefinite", "definite"] = "indefinite"

    def launched(
        self, *, host: str | None, entropy: Callable[[int], bytes], clock: Callable[[], int]
    ) -> Identity:
        """That of a module whose enclave has just been started: PCR0 to PCR15 are filled and locked.

        Args:
            host: Hexadecimal digits, of which an instance id is made if none is configured; `None` makes a
                random one.
            entropy: Returns as many random bytes as it is asked for.
            clock: Returns the nanoseconds since 1970.
        """
        instance_id = self.instance_id or f"i-0{(host or entropy(8).hex())[:16]}"
        values = {4: extended(ZERO, instance_id.encode())} | dict(self.pcrs)
        if self.role_arn is not None:
            values[3] = extended(ZERO, self.role_arn.encode())
        if self.debug_mode:
            values |= dict.fromkeys(DEBUG_ZEROED, ZERO)
        return Identity(
            instance_id=instance_id,
            enclave_id=self.enclave_id or new_enclave_id(entropy, clock),
            region=self.region,
            payload_map=self.payload_map,
            pcrs=tuple(values.get(index, ZERO) for index in range(PCR_COUNT)),
            locked=frozenset(range(LOCKED_AT_START)),
        )


def new_enclave_id(entropy: Callable[[int], bytes], clock: Callable[[], int]) -> str:
    """An enclave id as AWS makes it: the milliseconds since 1970 in 48 bits, and 16 random bits."""
    started_ms = clock() // 1_000_000 & (1 << 48) - 1
    return f"{started_ms:012x}{entropy(2).hex()}"
