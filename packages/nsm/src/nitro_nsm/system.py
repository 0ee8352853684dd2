"""The computer's own clock and entropy, which a module uses unless it is handed others.

They stand in a file of their own because the code around them is deterministic: it gets time and randomness
as arguments, so that a test or a replay can choose them.
"""

import os
import time

entropy = os.urandom
now_ns = time.time_ns
