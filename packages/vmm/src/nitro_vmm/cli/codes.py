"""The codes of errors; what ``vmm explain`` says of each is in `nitro_vmm.cli.explanations`.

A code is a letter and two digits. M is this package, H this machine's limits, I nitro-eif (images), N
nitro-nsm (the security module), V nitro-vsock. Besides these there are exit codes (numbers), causes of failed
boots (B) and nitro-cli's errors (E). A code keeps its meaning for ever, and one that is not used any more is
not given again.
"""

import errno
from typing import Final

from nitro_vmm.errors import VmmError

DISTRIBUTIONS: Final = {
    "nitro_eif": {
        "EifError": "I01",
        "EifFormatError": "I02",
        "UsageError": "I03",
        "HostError": "I04",
        "SigningError": "I05",
        "RegistryError": "I06",
        "DebianError": "I07",
    },
    "nitro_nsm": {
        "NsmError": "N01",
        "UsageError": "N02",
        "InputError": "N03",
        "HostError": "N04",
        "CborError": "N05",
        "DocumentError": "N06",
        "Refusal": "N07",
        "KmsError": "N08",
        "EnvelopeError": "N09",
    },
    "nitro_vsock": {
        "VsockError": "V01",
        "UsageError": "V02",
        "HostError": "V03",
        "ConfigFileError": "V04",
        "VhostUserError": "V05",
        "RefusedError": "V06",
        "WorkerError": "V07",
        "QueueError": "V08",
        "ChainError": "V09",
        "GuestMemoryError": "V10",
        "HandshakeError": "V11",
    },
}
"""The code of each error class of the other distributions; those of this one say it themselves."""

BUG: Final = "M06"
COMMAND_LINE: Final = "M07"
OUTPUT: Final = "M08"
NOTHING_SAID: Final = "M09"
ENDED: Final = "M11"
NO_IMAGE: Final = "M19"
NO_CONSOLE: Final = "M29"
STILL_RUNS: Final = "M30"
KILLED: Final = "M31"
EXTRA: Final = "M28"
OTHER: Final = "H05"

LIMITS: Final = {errno.EMFILE: "H01", errno.ENFILE: "H02", errno.ENOMEM: "H03", errno.ENOSPC: "H04"}
"""The codes of errors that are not about the file that they name."""


def code_of(error: BaseException) -> str:
    """The code of an error; `BUG` for one that nobody raises on purpose."""
    if isinstance(error, VmmError):
        return error.code
    for kind in type(error).__mro__:
        code = DISTRIBUTIONS.get(kind.__module__.partition(".")[0], {}).get(kind.__name__)
        if code is not None:
            return code
    return OTHER if isinstance(error, OSError) else BUG
