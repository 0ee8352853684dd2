"""The conditions of policy statements, evaluated as AWS documents it (IAM guide, "IAM JSON policy elements").

A condition block is a conjunction: every key under every operator must hold.

    {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": ["3ab…", "91c…"]}, "Bool": {…}}

* Several values of one key are alternatives; under a negated operator (StringNotEquals …) none may match.
* A key that the request lacks makes an operator false, a negated one true.
* `…IfExists` is true if the request lacks the key. `Null: {key: "true"}` is true exactly then.
* `ForAnyValue:` wants one of the request's values to match, and is false without any. `ForAllValues:` wants
  all of them to match, and is true without any. Under a negated operator, "match" means that no policy
  value equals.
* Names of keys are compared without regard to case, and values with it, unless the operator says otherwise.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from nitro_nsm.kms.errors import KmsError

Context = Mapping[str, tuple[str, ...]]
"""What a request has for each condition key (in lower case): one value, or several."""

ANY_VALUE, ALL_VALUES, IF_EXISTS = "ForAnyValue:", "ForAllValues:", "IfExists"
NITRO_TPM = "kms:recipientattestation:nitrotpm"


def like(pattern: str, value: str) -> bool:
    """Match `*` and `?`, and nothing else that `fnmatch` knows."""
    return re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), value) is not None


def _arn_like(pattern: str, value: str) -> bool:
    """Match each of an ARN's six parts for itself."""
    parts, found = pattern.split(":", 5), value.split(":", 5)
    return len(parts) == len(found) and all(map(like, parts, found))


def _number(test: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    def compare(wanted: str, found: str) -> bool:
        try:
            return test(float(found), float(wanted))
        except ValueError:
            return False

    return compare


@dataclass(frozen=True, slots=True)
class Operator:
    """How one value of a policy is compared with one of a request."""

    matches: Callable[[str, str], bool]
    """Takes the policy's value and the request's."""
    negated: bool = False
    """Whether no policy value may match, instead of one."""


OPERATORS = {
    "StringEquals": Operator(str.__eq__),
    "StringNotEquals": Operator(str.__eq__, negated=True),
    "StringEqualsIgnoreCase": Operator(lambda wanted, found: wanted.casefold() == found.casefold()),
    "StringNotEqualsIgnoreCase": Operator(
        lambda wanted, found: wanted.casefold() == found.casefold(), negated=True
    ),
    "StringLike": Operator(like),
    "StringNotLike": Operator(like, negated=True),
    "ArnEquals": Operator(_arn_like),
    "ArnLike": Operator(_arn_like),
    "ArnNotEquals": Operator(_arn_like, negated=True),
    "ArnNotLike": Operator(_arn_like, negated=True),
    "Bool": Operator(lambda wanted, found: wanted.lower() == found.lower()),
    "NumericEquals": Operator(_number(float.__eq__)),
    "NumericNotEquals": Operator(_number(float.__eq__), negated=True),
    "NumericLessThan": Operator(_number(float.__lt__)),
    "NumericLessThanEquals": Operator(_number(float.__le__)),
    "NumericGreaterThan": Operator(_number(float.__gt__)),
    "NumericGreaterThanEquals": Operator(_number(float.__ge__)),
}
"""Date, IP address and binary operators are not here: no key that this KMS knows has such values."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator on one key."""

    operator: str
    """As the policy writes it, with its prefix and suffix."""
    key: str
    """As the policy writes it."""
    values: tuple[str, ...]
    """The policy's values."""

    def holds(self, context: Context) -> bool:
        """Whether a request meets the condition."""
        found = context.get(self.key.lower())
        if self.operator == "Null":
            return any((wanted.lower() == "true") == (found is None) for wanted in self.values)
        prefix, base, if_exists = _taken_apart(self.operator)
        operator = OPERATORS[base]
        if found is None:
            return if_exists or (operator.negated if not prefix else prefix == ALL_VALUES)
        each = (self._matches(operator, value) for value in found)
        return all(each) if prefix == ALL_VALUES or (operator.negated and not prefix) else any(each)

    def _matches(self, operator: Operator, value: str) -> bool:
        return any(operator.matches(wanted, value) for wanted in self.values) is not operator.negated

    def __str__(self) -> str:
        return f"{self.operator} {self.key} {' or '.join(self.values)}"


def parse(block: object) -> tuple[Condition, ...]:
    """Read the `Condition` element of a statement.

    Raises:
        KmsError: It is malformed (MalformedPolicyDocumentException), or has what this KMS cannot evaluate
            (UnsupportedOperationException).
    """
    if not isinstance(block, dict):
        raise malformed("a Condition is a map of operators")
    found = []
    for operator, keys in block.items():
        _, base, _ = _taken_apart(operator)
        if operator != "Null" and base not in OPERATORS:
            raise KmsError(
                "UnsupportedOperationException", f"the condition operator {operator!r} is not known"
            )
        if not isinstance(keys, dict):
            raise malformed(f"the operator {operator} has no map of keys")
        for key, values in keys.items():
            if key.lower().startswith(NITRO_TPM):
                raise KmsError(
                    "UnsupportedOperationException",
                    f"{key}: this KMS attests enclaves, and no NitroTPM instances",
                )
            found.append(Condition(operator, key, tuple(_texts(values))))
    return tuple(found)


def malformed(why: str) -> KmsError:
    """The error about a policy that cannot be read."""
    return KmsError("MalformedPolicyDocumentException", f"The new key policy is not valid: {why}.")


def _texts(values: object) -> Iterable[str]:
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, bool):
            yield str(value).lower()
        elif isinstance(value, str | int | float):
            yield str(value)
        else:
            raise malformed("a condition's values are texts, numbers or truth values")


def _taken_apart(operator: str) -> tuple[str, str, bool]:
    """Prefix, name without prefix and suffix, and whether the suffix is there."""
    prefix = next((each for each in (ANY_VALUE, ALL_VALUES) if operator.startswith(each)), "")
    base = operator.removeprefix(prefix)
    return prefix, base.removesuffix(IF_EXISTS), base.endswith(IF_EXISTS)
