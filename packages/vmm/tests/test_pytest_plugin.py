"""The pytest plugin, as its users' tests see it."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SETTINGS = "wait_for_boot=False, accelerator='unicorn'"


@pytest.fixture
def project(pytester: pytest.Pytester, spinning_image: Path) -> pytest.Pytester:
    """A user's project."""
    pytester.makeini(f"[pytest]\nnitro_eif = {spinning_image}\nnitro_memory_mib = 64\n")
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "no:cacheprovider", *options)


def test_an_enclave_for_a_test(project: pytest.Pytester) -> None:
    project.makepyfile(
        f"""
        import pytest

        @pytest.mark.nitro_enclave({SETTINGS})
        def test_it(nitro_enclave):
            nitro_enclave.wait_for_output(b"hi")
            assert nitro_enclave.config.memory_mib == 64
        """
    )

    run(project).assert_outcomes(passed=1)


def test_a_failing_test_shows_the_console(project: pytest.Pytester) -> None:
    project.makepyfile(
        f"""
        def test_it(nitro_enclave_factory):
            enclave = nitro_enclave_factory({SETTINGS})
            enclave.wait_for_output(b"hi")
            assert False
        """
    )

    result = run(project)

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*console of spinning.eif*", "hi", "*timeline of spinning.eif*", "*guest starts*"]
    )


def test_an_enclave_that_does_not_boot_is_an_error_with_its_console(
    pytester: pytest.Pytester, image: Path
) -> None:
    pytester.makeini(f"[pytest]\nnitro_eif = {image}\n")
    pytester.makepyfile("def test_it(nitro_enclave): pass")

    result = run(pytester)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*EnclaveEndedError: the enclave halted for good*", "*console of small.eif*", "hi"]
    )


def test_no_image(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(nitro_enclave): pass")

    result = run(pytester)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["no image: give nitro_eif in the ini file*"])


SESSION = f"""
import pytest

@pytest.fixture(scope="session")
def enclave(nitro_enclave_factory_session):
    return nitro_enclave_factory_session({SETTINGS})

@pytest.mark.parametrize("number", range(10))
def test_it(enclave, number, record_property):
    enclave.wait_for_output(b"hi")
    print("module", enclave.module_id)
"""


def test_one_enclave_for_ten_tests(project: pytest.Pytester) -> None:
    project.makepyfile(SESSION)

    result = run(project, "-s")

    result.assert_outcomes(passed=10)
    assert len({line for line in result.outlines if "module " in line}) <= 2  # a dot may stand before it


def test_two_workers_of_xdist(project: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    project.makepyfile(SESSION)

    run(project, "-n", "2").assert_outcomes(passed=10)


def test_the_plugin_loads_no_machine(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            assert not {"unicorn", "trio", "pydantic", "nitro_eif", "nitro_vmm.config"} & set(sys.modules)
        """
    )

    run(pytester, "-p", "no:trio").assert_outcomes(passed=1)
