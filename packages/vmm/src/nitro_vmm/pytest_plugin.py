"""A pytest plugin: tests that run against an enclave.

::

    # pyproject.toml
    [tool.pytest.ini_options]
    nitro_eif = "app.eif"

    def test_it_greets(nitro_enclave):
        with nitro_enclave.connect(5000) as connection:
            assert connection.recv(5) == b"hello"

``nitro_enclave`` boots one for each test, ``nitro_enclave_session`` one for all (each worker of pytest-xdist
has its own), and ``nitro_enclave_factory`` as many as a test wants. The settings come from the ini file, then
from ``@pytest.mark.nitro_enclave(...)``, both by the names of `EnclaveConfig`. When a test fails, its report
has what the enclaves printed.

Importing this loads nothing of the machine, because pytest does so at every start.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from nitro_vmm.blocking import BlockingEnclave

Factory = Callable[..., "BlockingEnclave"]

INI: Final = {
    "nitro_eif": ("eif_path", "the image that nitro_enclave boots; relative to the ini file"),
    "nitro_memory_mib": ("memory_mib", "its memory, MiB"),
    "nitro_boot_timeout_s": ("boot_timeout_s", "how long its heartbeat may take, seconds"),
    "nitro_accelerator": ("accelerator", "what runs it: auto, kvm or unicorn"),
}
CONSOLE_BYTES_MAX: Final = 8192
"""How much of the console's end a failing test's report shows."""

ENCLAVES: Final = pytest.StashKey[list["BlockingEnclave"]]()
"""Where a session and a test keep the enclaves that they booted."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the settings of the ini file, and the image as an option."""
    for name, (_, what) in INI.items():
        parser.addini(name, what)
    group = parser.getgroup("nitro-vmm")
    group.addoption("--nitro-eif", metavar="EIF", help="the image that nitro_enclave boots")


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of the marker."""
    config.addinivalue_line(
        "markers",
        "nitro_enclave(**settings): what the test's enclave is to be, by the names of EnclaveConfig",
    )


def _settings(config: pytest.Config) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, (field, _) in INI.items():
        if value := config.getini(name):
            settings[field] = value
    if "eif_path" in settings:
        settings["eif_path"] = config.rootpath / settings["eif_path"]
    if eif := config.getoption("--nitro-eif"):
        settings["eif_path"] = Path(config.invocation_params.dir, eif)
    return settings


def _boot(
    resources: ExitStack, booted: list["BlockingEnclave"], settings: dict[str, Any]
) -> "BlockingEnclave":
    from nitro_vmm.blocking import BlockingEnclave  # noqa: PLC0415 - only tests with enclaves need the machine
    from nitro_vmm.config_sources import load_config  # noqa: PLC0415

    wait = settings.pop("wait_for_boot", True)
    enclave = BlockingEnclave(load_config({"cid": 0, **settings}))
    booted.append(enclave)
    resources.enter_context(enclave)
    if wait:
        enclave.booted()
    return enclave


def _factory(node: pytest.Session | pytest.Item, settings: dict[str, Any]) -> Iterator[Factory]:
    booted = node.stash.setdefault(ENCLAVES, [])
    with ExitStack() as resources:

        def make(eif: str | Path | None = None, **more: object) -> "BlockingEnclave":
            """Boot an enclave, and wait for its heartbeat unless ``wait_for_boot=False``."""
            chosen = {**settings, **more}
            if eif is not None:
                chosen["eif_path"] = eif
            if "eif_path" not in chosen:
                pytest.fail(
                    "no image: give nitro_eif in the ini file, or eif_path in the marker", pytrace=False
                )
            return _boot(resources, booted, chosen)

        yield make
    booted.clear()


@pytest.fixture
def nitro_enclave_factory(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """Boots enclaves: ``nitro_enclave_factory("app.eif", memory_mib=512)``; they end with the test."""
    settings = _settings(request.config)
    for marker in reversed(list(request.node.iter_markers("nitro_enclave"))):
        settings |= marker.kwargs
    yield from _factory(request.node, settings)


@pytest.fixture
def nitro_enclave(nitro_enclave_factory: Factory) -> "BlockingEnclave":
    """An enclave of the test's own, which has booted."""
    return nitro_enclave_factory()


@pytest.fixture(scope="session")
def nitro_enclave_factory_session(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """The same for the whole session."""
    yield from _factory(request.session, _settings(request.config))


@pytest.fixture(scope="session")
def nitro_enclave_session(nitro_enclave_factory_session: Factory) -> "BlockingEnclave":
    """One enclave for all tests, which has booted."""
    return nitro_enclave_factory_session()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give a failing test's report what its enclaves printed."""
    report = yield
    if report.failed:
        enclaves = item.stash.get(ENCLAVES, [])
        if "nitro_enclave_factory_session" in getattr(item, "fixturenames", ()):
            enclaves = [*item.session.stash.get(ENCLAVES, []), *enclaves]
        for enclave in enclaves:
            name = enclave.config.eif_path.name
            report.sections.append((f"console of {name}", _console(enclave)))
            report.sections.append((f"timeline of {name}", str(enclave.timeline)))
    return report


def _console(enclave: "BlockingEnclave") -> str:
    text = enclave.console_output[-CONSOLE_BYTES_MAX:].decode(errors="replace").replace("\r", "")
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)
