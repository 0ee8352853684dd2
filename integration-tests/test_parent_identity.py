"""Role ARNs and instance ids: `eif` and the security module take the same texts, and measure them alike."""

import pytest
from pydantic import ValidationError

from nitro_eif import UsageError, pcr3, pcr4
from nitro_nsm import Nsm, NsmConfig

INSTANCE_IDS = {
    "i-0123456789abcdef0": "d6432900ac1c343cb40286898792c55e962aef0cc35c4910c0c286145b51af19",
    "i-1a2b3c4d": "3d4342d19567615198fb45fd3168f3d5d9d1e057f20a98cb98db4b6ec3416349",
}
ROLE_ARNS = {
    "arn:aws:iam::123456789012:role/Webserver": (
        "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75329dccd99aa5f6ef"  # public, of a service's own tests
    ),
    "arn:aws-us-gov:iam::123456789012:role/team/a+b=c,d.e@f_g-h": (
        "15bb20df8446e6e65016a2a07cdbb5b842bbb7eedfd76b8599d847edc2ef60e5"
    ),
}


@pytest.mark.parametrize("text", INSTANCE_IDS)
def test_both_measure_an_instance_id_alike(text: str) -> None:
    registers = Nsm(NsmConfig(instance_id=text)).state().pcrs

    assert registers[4] == pcr4(text)
    assert registers[4].hex().startswith(INSTANCE_IDS[text])


@pytest.mark.parametrize("text", ROLE_ARNS)
def test_both_measure_a_role_alike(text: str) -> None:
    registers = Nsm(NsmConfig(role_arn=text)).state().pcrs

    assert registers[3] == pcr3(text)
    assert registers[3].hex().startswith(ROLE_ARNS[text])


@pytest.mark.parametrize(
    "text",
    [
        *("", "i-", "i-0ff", "i-0123456789abcdef", "i-0123456789abcdef01", "i-0123456789ABCDEF0"),
        *("i-0123456789abcdef0\n", " i-1a2b3c4d", "x-1a2b3c4d", "i-1a2b3c4g", "i-1a2b3c\u0664d"),
    ],
)
def test_both_refuse_what_is_not_an_instance_id(text: str) -> None:
    with pytest.raises(UsageError):
        pcr4(text)
    with pytest.raises(ValidationError):
        NsmConfig(instance_id=text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "Webserver", "arn:aws:iam::1:role/x", "arn:aws:iam::123456789012:user/x"),
        *("arn:aws:iam::123456789012:role/", "arn:aws:iam::123456789012:role/a b"),
        *("arn:aws:iam::123456789012:role/a\n", "arn:aws:iam::12345678901\u0662:role/a"),
        *("arn:AWS:iam::123456789012:role/a", "arn:aws:iam::123456789012:role/\u00e9"),
    ],
)
def test_both_refuse_what_is_not_a_roles_arn(text: str) -> None:
    with pytest.raises(UsageError):
        pcr3(text)
    with pytest.raises(ValidationError):
        NsmConfig(role_arn=text)
