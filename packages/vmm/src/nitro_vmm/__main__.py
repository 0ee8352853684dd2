"""``python -m nitro_vmm`` is ``vmm``."""

import sys

from nitro_vmm.cli import main

sys.exit(main())
