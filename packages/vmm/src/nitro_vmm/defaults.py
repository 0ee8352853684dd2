"""Values that the configuration, the command line and the loader share; importing them loads nothing."""

from typing import Final

ENVIRONMENT_PREFIX: Final = "NITRO_VMM_"
"""How the names of variables begin that are settings."""
CID_DEFAULT: Final = 16
"""The enclave's vsock address where none is chosen; nitro-cli counts up from this one."""
HEARTBEAT_PORT: Final = 9000
"""The parent's vsock port that the enclave's init tells its heartbeat."""
HEARTBEAT: Final = b"\xb7"
"""What it sends, and gets back."""
MEMORY_MIB_MIN: Final = 64
"""nitro_enclaves.ko refuses less."""
MEMORY_MIB_DEFAULT: Final = 512
MEMORY_PER_IMAGE_BYTE: Final = 4
"""nitro-cli refuses less memory than four times the image's size (its error E26)."""
REGION_DEFAULT: Final = "us-east-1"
"""The AWS region that the security module's certificates name where none is chosen."""
BOOT_TIMEOUT_S_DEFAULT: Final = 180.0
"""nitro-cli waits as long, or longer for large images."""
