"""What tests of all packages need: a way to import the helpers that stand beside them.

Files of tests have the same name in several packages (``test_cli.py``), which pytest's "importlib" mode
allows. In that mode nothing is put on the import path, so this file puts every folder of tests there, and the
tools. Helpers share one namespace because of that; two of the same name are refused rather than mixed up.
"""

import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A test never fails by the clock, because the machine may have other things to do.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

ROOT = Path(__file__).parent
TESTS = [ROOT / "integration-tests", *sorted(ROOT.glob("packages/*/tests"))]


def helper_folders() -> list[Path]:
    """The folders from which tests import helpers.

    Raises:
        pytest.UsageError: Two helpers have the same name.
    """
    helpers: dict[str, Path] = {}
    files = [path for folder in TESTS for path in sorted(folder.rglob("*.py"))]
    files += sorted((ROOT / "tools").glob("*.py"))  # its folders are packages
    for path in files:
        if path.name == "conftest.py" or path.name.startswith("test_"):
            continue
        if path.name in helpers:
            one, other = helpers[path.name].relative_to(ROOT), path.relative_to(ROOT)
            raise pytest.UsageError(
                f"{one} and {other} have the same name, and tests can import only one of them: rename one"
            )
        helpers[path.name] = path
    return list(dict.fromkeys(path.parent for path in helpers.values()))


sys.path[:0] = [str(folder) for folder in helper_folders()]

# A shell has the programs that it runs in the background ignore what Ctrl-C and Ctrl-\ send, and they would
# hand that down to the programs that are tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
