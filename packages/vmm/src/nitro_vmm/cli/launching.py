"""What makes a launch cheaper for the processor, and is undone when the guest runs."""

import gc
import os
import sys
from typing import Final

SWITCH_INTERVAL_S: Final = 0.00005
"""How long a guest that has something for Python waits at most while this process still imports."""
_switch_interval_s = sys.getswitchinterval()


def begin() -> None:
    """A launch begins: put off what it need not wait for."""
    # It makes many objects that stay, and looking through them for garbage takes a tenth of the time.
    gc.disable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # What else is installed may change how pydantic checks; here nobody wants that, and looking takes time.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def end() -> None:
    """The guest runs, or never will: garbage is collected again, and what was made by now is left out."""
    sys.setswitchinterval(_switch_interval_s)
    gc.freeze()
    gc.enable()
