import base64
import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from containers import digest
from fake_registry import FakeRegistry
from nitro_eif import Architecture, EifFormatError, Image, RegistryError, UsageError, open_image
from nitro_eif.container.credentials import credentials
from nitro_eif.container.references import Reference


def pull(registry: FakeRegistry, stack: ExitStack) -> Image:
    return open_image(f"docker://{registry.host}/team/app:1.2", Architecture.X86_64, stack)


def test_an_image_is_pulled(registry: FakeRegistry) -> None:
    with ExitStack() as stack:
        image = pull(registry, stack)

        assert bytes(image.unpack(stack)["bin/app"].data) == b"the application"
        assert image.name == f"{registry.host}/team/app:1.2"


def test_a_token_is_fetched_once_and_used(registry: FakeRegistry) -> None:
    registry.token = "secret-token"  # noqa: S105
    with ExitStack() as stack:
        pull(registry, stack).unpack(stack)

    assert [path for path, _ in registry.log].count("/token") == 1
    assert registry.log[-1][1] == "Bearer secret-token"


def test_a_login_is_used_for_the_token_and_for_basic_authentication(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    auth = base64.b64encode(b"u:p").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    registry.token = "token"  # noqa: S105
    with ExitStack() as stack:
        pull(registry, stack)
        assert ("/token", f"Basic {auth}") in registry.log
        registry.scheme = "Basic"
        registry.log.clear()
        pull(registry, stack)
    assert "/token" not in [path for path, _ in registry.log]


def test_credentials_do_not_follow_a_redirection(registry: FakeRegistry) -> None:
    registry.token = "token"  # noqa: S105
    registry.elsewhere = f"http://localhost:{registry.server_address[1]}"
    with ExitStack() as stack:
        pull(registry, stack).unpack(stack)

    assert {authorization for path, authorization in registry.log if path.startswith("/elsewhere/")} == {None}


def test_an_index_leads_to_the_manifest(registry: FakeRegistry) -> None:
    registry.top = registry.container.index()
    with ExitStack() as stack:
        assert pull(registry, stack).config.user == "app"


def test_passing_failures_and_broken_downloads_are_tried_again(registry: FakeRegistry) -> None:
    registry.failures = [503, 500]
    registry.cut = 2
    with ExitStack() as stack:
        pull(registry, stack).unpack(stack)


@pytest.mark.parametrize(
    ("failures", "reason"),
    [([404], "no such image"), ([403], "log in with"), ([503] * 9, "answers 503"), ([418], "answers 418")],
)
def test_refusals_say_what_to_do(registry: FakeRegistry, failures: list[int], reason: str) -> None:
    registry.failures = failures

    with ExitStack() as stack, pytest.raises(RegistryError) as caught:
        pull(registry, stack)

    assert reason in f"{caught.value} {caught.value.hint}"


def test_a_registry_that_sends_other_data_is_found_out(registry: FakeRegistry) -> None:
    name = digest(registry.container.config)
    for data in (registry.container.config[:-1] + b" ", registry.container.config + b" "):
        registry.container.blobs[name] = data
        with (
            ExitStack() as stack,
            pytest.raises((EifFormatError, RegistryError), match=r"the data are not|sends more"),
        ):
            pull(registry, stack)


def test_a_manifest_is_checked_against_the_digest_in_the_reference(registry: FakeRegistry) -> None:
    container = registry.container
    good, wrong = digest(container.manifest), digest(container.config)
    with ExitStack() as stack:
        open_image(f"docker://{registry.host}/team/app@{good}", Architecture.X86_64, stack)
        container.blobs[wrong] = container.manifest + b" "
        with pytest.raises(EifFormatError, match="the data are not"):
            open_image(f"docker://{registry.host}/team/app@{wrong}", Architecture.X86_64, stack)


def test_a_registry_that_is_not_there(registry: FakeRegistry) -> None:
    with ExitStack() as stack, pytest.raises(RegistryError, match="cannot be reached"):
        open_image("docker://127.0.0.1:1/team/app:1.2", Architecture.X86_64, stack)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("alpine", "registry-1.docker.io/library/alpine:latest"),
        ("docker.io/team/app:1", "registry-1.docker.io/team/app:1"),
        ("team/app", "registry-1.docker.io/team/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("r.example:5000/a/b/c:x_1.2", "r.example:5000/a/b/c:x_1.2"),
        (f"r.example/a@sha256:{'0' * 64}", f"r.example/a@sha256:{'0' * 64}"),
        (f"r.example/a:1@sha256:{'0' * 64}", f"r.example/a@sha256:{'0' * 64}"),
    ],
)
def test_references_are_read_as_docker_does(text: str, full: str) -> None:
    assert str(Reference.parse(text)) == full


@pytest.mark.parametrize(
    "text", ["", "UPPER", "a b", "r.example/", "a:b/c", "a@sha256:0", "r.example/../x", "a:" + "x" * 129]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Reference.parse(text)


def test_only_registries_on_this_machine_are_local() -> None:
    hosts = {
        "localhost/a": True,
        "127.0.0.1:5000/a": True,
        "[::1]:5000/a": True,
        "127.example/a": False,
        "r.io/a": False,
    }
    assert {text: Reference.parse(text).is_local for text in hosts} == hosts


def test_broken_login_files_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for text in ("", "[]", '{"auths": []}', '{"auths": {"h": {"auth": "%%%"}}}', '{"auths": {"h": {}}}'):
        (tmp_path / "config.json").write_text(text)
        assert credentials("h") is None
