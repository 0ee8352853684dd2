"""What programs pass to /dev/nsm (linux/nsm.h)."""

import struct
from typing import Final

NSM_RAW: Final = struct.Struct("=QQQQ")
"""nsm_raw: address and length of the request, then of the room for the reply."""
NSM_IOCTL: Final = 3 << 30 | NSM_RAW.size << 16 | 0x0A << 8 | 0
"""_IOWR(0x0A, 0, struct nsm_raw)."""
