"""Where a configuration comes from, and what is said when it cannot be."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm import UsageError
from nitro_vmm.cli.configure import SPELLINGS, config_of, plain_config
from nitro_vmm.cli.main import parser
from nitro_vmm.config import EnclaveConfig, Endpoint, Proxied, Published
from nitro_vmm.config_sources import load_config

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"


def load(
    path: Path | None = None, environment: dict[str, str] | None = None, **flags: object
) -> EnclaveConfig:
    return load_config(flags, path=path, environment=environment or {})


def test_later_sources_win(tmp_path: Path) -> None:
    path = tmp_path / "enclave.toml"
    path.write_text('eif_path = "a.eif"\nmemory_mib = 100\ncid = 20\nname = "file"\n')

    config = load(path, {"NITRO_VMM_MEMORY_MIB": "200", "NITRO_VMM_CID": "30", "HOME": "/"}, cid=40)

    assert (config.name, config.memory_mib, config.cid) == ("file", 200, 40)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("enclave.json", '{"eif_path": "a.eif", "publish": ["8080:5000"], "debug_mode": true}'),
        ("enclave.toml", 'eif_path = "a.eif"\npublish = ["8080:5000"]\ndebug_mode = true\n'),
        ("enclave.yaml", "eif_path: a.eif\npublish: ['8080:5000']\ndebug_mode: true\n"),
    ],
)
def test_kinds_of_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    config = load(tmp_path / name)

    assert config == EnclaveConfig.model_validate(
        {"eif_path": "a.eif", "publish": ["8080:5000"], "debug_mode": True}
    )


def test_a_configuration_of_nitro_cli(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "enclave_name": "hello",
                "eif_path": "a.eif",
                "enclave_cid": 0,
                "memory_mib": 512,
                "cpu_ids": [1, 3],
                "debug_mode": False,
                "attach_console": True,
            }
        )
    )

    config = load(path)

    assert (config.name, config.cid, config.memory_mib) == ("hello", 0, 512)
    assert (config.processors, config.debug_mode) == (2, True)


def test_lists_in_the_environment_have_commas() -> None:
    config = load(environment={"NITRO_VMM_EIF_PATH": "a.eif", "NITRO_VMM_ALLOW": "example.com:443,[::1]:80"})

    assert config.allow == (Endpoint(host="example.com", port=443), Endpoint(host="::1", port=80))


def test_ports_as_text() -> None:
    config = EnclaveConfig.model_validate(
        {
            "eif_path": "a.eif",
            "publish": ["8080:5000", "0.0.0.0:80:81", "unix:/run/a:b:7"],
            "proxy": ["8000=kms.us-east-1.amazonaws.com:443"],
        }
    )

    assert config.publish == (
        Published(listen=Endpoint(host="127.0.0.1", port=8080), port=5000),
        Published(listen=Endpoint(host="0.0.0.0", port=80), port=81),  # noqa: S104 - a user's wish
        Published(listen=Path("/run/a:b"), port=7),
    )
    assert config.proxy == (
        Proxied(port=8000, target=Endpoint(host="kms.us-east-1.amazonaws.com", port=443)),
    )


@pytest.mark.parametrize(
    ("value", "port"),
    [
        (True, 8000),
        ("", 8000),
        ("port=81,region=eu-west-1", 81),
        ({"port": 82}, 82),
        ("FILE", 83),
        (False, None),
        (None, None),
    ],
)
def test_a_kms_as_text_as_a_file_and_in_short(tmp_path: Path, value: object, port: int | None) -> None:
    file = tmp_path / "kms.yaml"
    file.write_text("port: 83")

    config = load(eif_path="a.eif", kms=str(file) if value == "FILE" else value)

    assert (config.kms and config.kms.port) == port


@pytest.mark.parametrize(("value", "port"), [("1", 8000), ("no", None), ("port=81", 81)])
def test_a_kms_in_the_environment(value: str, port: int | None) -> None:
    config = load(environment={"NITRO_VMM_EIF_PATH": "a.eif", "NITRO_VMM_KMS": value})

    assert (config.kms and config.kms.port) == port


@pytest.mark.parametrize(
    ("kms", "said", "hint"),
    [
        ("prot=1", "--kms: prot: there is no such setting", "did you mean port?"),
        ("port=many", "--kms: port many: must be a whole number", "The parent's port"),
        ("listen=here", "--kms: listen here: must be HOST:PORT", "Where this machine's programs"),
        ("nowhere.yaml", "nowhere.yaml is not a file", "path of a configuration"),
        ("port=1,alone", "--kms port=1,alone: must be a file, or NAME=VALUE", "A local KMS"),
    ],
)
def test_a_kms_that_cannot_be(kms: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config({"eif_path": "a.eif", "kms": kms}, spellings=SPELLINGS, environment={})

    assert said in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "memory_mib = ", "a.toml: "),
        ("a.json", "[1]", "a.json is not a table"),
        ("a.json", "{", "a.json: "),
        ("a.yaml", "&a [*a]", "a.yaml is not a table"),
        ("a.yaml", "a: b: c", "a.yaml: "),
        ("a.yaml", "[" * 10_000, "a.yaml: "),
        ("a.json", '{"memory_mb": 1}', "memory_mb: there is no such setting"),
        ("a.json", '{"eif_path": "a", "memory_mib": "much"}', "memory_mib much: must be a whole number"),
        ("a.json", '{"cid": 5, "enclave_cid": 6}', "enclave_cid and cid say the same"),
        ("a.json", '{"eif_path": "a", "proxy": 1}', "proxy 1: must be a list"),
        ("a.json", "{}", "eif_path: must be given"),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(UsageError) as caught:
        load(tmp_path / name)

    assert said in str(caught.value)


def test_did_you_mean(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"eif_path": "a", "memory_mb": 1}')

    with pytest.raises(UsageError) as in_file:
        load(tmp_path / "a.json")
    with pytest.raises(UsageError, match="no setting NITRO_VMM_MEMORY_MB") as in_environment:
        load(environment={"NITRO_VMM_MEMORY_MB": "1"})

    assert in_file.value.hint == "did you mean memory_mib?"
    assert in_environment.value.hint == "did you mean NITRO_VMM_MEMORY_MIB?"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vhost_user_path": "/x", "publish": ["1:2"]}, "vhost_user_path and publish exclude each other"),
        ({"proxy": ["1=a:1", "1=b:1"]}, "one port to two endpoints"),
        ({"root_cert": "c.pem"}, "root_cert needs root_key"),
        ({"vhost_user_path": "/x", "kms": True}, "vhost_user_path and kms exclude each other"),
        ({"proxy": ["8000=a:1"], "kms": True}, "proxy and kms have the same port"),
    ],
)
def test_exclusions_are_in_the_model(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EnclaveConfig.model_validate({"eif_path": "a.eif", **options})


def test_every_setting_is_an_option_and_in_the_docs() -> None:
    documented = DOCS.read_text()

    assert set(SPELLINGS) == set(EnclaveConfig.model_fields)
    assert [name for name in EnclaveConfig.model_fields if f"| `{name}` |" not in documented] == []


NUMBERS = st.one_of(
    st.integers(-2, 3).map(str),
    st.integers(60, 70).map(str),
    st.integers(999_990, 1_048_580).map(str),
    st.sampled_from(["", "0128", " 128", "1_28", "+128", "128.0", "1e3", "\u0661\u0662\u0668"]),
)
PATHS = st.sampled_from(["", "v", "/none/v w", "../v/", "v\u00e9", "\udcff"])
OPTIONS = st.one_of(
    st.tuples(st.sampled_from(["--eif-path", "--from", "--vsock-path"]), PATHS).map(list),
    st.tuples(st.sampled_from(["--memory-mib", "--memory", "--cid", "--enclave-cid"]), NUMBERS).map(
        lambda option: [f"{option[0]}={option[1]}"]
    ),
    st.sampled_from(["--console", "--no-console", "--debug-mode", "--quiet-kernel", "--seqpacket"]).map(
        lambda flag: [flag]
    ),
    st.sampled_from(["auto", "kvm", "unicorn", "KVM", ""]).map(lambda name: [f"--accel={name}"]),
    st.sampled_from(["off", "kernel", "image", "Image", ""]).map(lambda kind: [f"--warm={kind}"]),
    st.sampled_from([["--gdb", "0"], ["--vsock", "vhost-user:v"], ["--cpu-count", "1"], ["--name", "n"]]),
    st.sampled_from(
        [["--config", "none.toml"], ["--from-qemu", "-m 512"], ["--role-arn", "r"], ["--kms", ""]]
    ),
)


@given(images=st.lists(PATHS, max_size=1), words=st.lists(OPTIONS, max_size=4))
def test_a_plain_configuration_is_that_of_all_sources(images: list[str], words: list[list[str]]) -> None:
    given = [*images, *(word for option in words for word in option)]
    arguments = parser("run").parse_args(["run", *given])

    plain = plain_config(arguments)

    if plain is not None:
        config = config_of(arguments)
        assert {name: getattr(plain, name) for name in EnclaveConfig.model_fields} == dict(config)
        assert plain.checked() == config
        assert plain.begins_at_once == config.begins_at_once
        assert plain.connects_at_once == config.connects_at_once
        assert plain.shows_console == config.shows_console


@pytest.mark.parametrize(
    "words",
    [
        ["a.eif"],
        ["--eif-path", "a.eif", "--memory", "512", "--cid", "16"],
        ["a.eif", "--vsock-path", "v", "--console", "--quiet-kernel", "--accel", "unicorn"],
        ["--from", "a.saved", "--debug-mode"],
        ["a.eif", "--warm", "image", "--no-console", "--seqpacket"],
    ],
)
def test_common_command_lines_are_plain(words: list[str]) -> None:
    assert plain_config(parser("run").parse_args(["run", *words])) is not None


def test_a_setting_in_the_environment_is_not_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = parser("run").parse_args(["run", "a.eif"])
    assert plain_config(arguments) is not None

    monkeypatch.setenv("NITRO_VMM_MEMORY_MIB", "128")

    assert plain_config(arguments) is None


@pytest.mark.parametrize(("option", "chosen"), [([], "unicorn"), (["--accel", "kvm"], "kvm")])
def test_the_environment_may_name_the_accelerator(
    monkeypatch: pytest.MonkeyPatch, option: list[str], chosen: str
) -> None:
    monkeypatch.setenv("NITRO_VMM_ACCELERATOR", "unicorn")
    arguments = parser("run").parse_args(["run", "a.eif", *option])

    machine = plain_config(arguments)

    assert machine is not None
    assert machine.accelerator == config_of(arguments).accelerator == chosen
