"""Who may do what with a key, by its key policy (KMS guide, "Key policies" and "Policy evaluation").

A request is denied if a Deny statement applies, otherwise allowed if an Allow statement or a grant does,
otherwise denied. A statement applies if its principal, action, resource and conditions all do.

There are no IAM policies here. A statement whose principal is a whole account lets in the account's root
user, and others of the account only where the caller is said to have IAM permissions, because on AWS such a
statement hands the decision to IAM.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from nitro_nsm.kms.conditions import Condition, Context, like, malformed, parse

STATEMENTS_MAX = 200
"""A policy has at most 32 KiB, into which no more sensible statements fit."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    arn: str
    """`arn:aws:iam::ACCOUNT:root`, or a role or user, or an assumed role."""
    iam_allows: bool = False
    """Whether the caller's IAM policies allow everything; without it they allow nothing."""

    @property
    def account(self) -> str:
        """The 12 digits of the account."""
        return self.arn.split(":")[4]

    @property
    def names(self) -> tuple[str, ...]:
        """The ARNs under which a statement may name the caller: its own, and the role of an assumed role."""
        partition, service, _, account, resource = self.arn.split(":", 5)[1:]
        kind, _, rest = resource.partition("/")
        if (service, kind) == ("sts", "assumed-role"):
            return self.arn, f"arn:{partition}:iam::{account}:role/{rest.partition('/')[0]}"
        return (self.arn,)


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller wants to do."""

    caller: Caller
    action: str
    """Such as `kms:Decrypt`."""
    resource: str
    """The key's ARN."""
    context: Context
    """The values of condition keys."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a policy."""

    name: str
    """Its `Sid`, or its place in the policy."""
    denies: bool
    principals: tuple[str, ...]
    """ARNs, account numbers or `*`."""
    not_principals: bool
    actions: tuple[str, ...]
    not_actions: bool
    resources: tuple[str, ...]
    conditions: tuple[Condition, ...]

    def concerns(self, request: Request) -> bool:
        """Whether action and resource are those of the request."""
        named = any(like(action.lower(), request.action.lower()) for action in self.actions)
        return named is not self.not_actions and any(like(each, request.resource) for each in self.resources)

    def is_for(self, caller: Caller) -> bool:
        """Whether the caller is among the principals."""
        return any(self._names(principal, caller) for principal in self.principals) is not self.not_principals

    def failed(self, request: Request) -> list[Condition]:
        """The conditions that the request does not meet."""
        return [condition for condition in self.conditions if not condition.holds(request.context)]

    def _names(self, principal: str, caller: Caller) -> bool:
        if principal == "*" or principal in caller.names:
            return True
        account = principal if principal.isdigit() else principal.removesuffix(":root").split(":")[-1]
        whole_account = principal.isdigit() or principal.endswith(":root")
        if not whole_account or account != caller.account:
            return False
        # Denials of an account reach everybody in it; permissions only those whom IAM lets in.
        return self.denies or caller.arn.endswith(":root") or caller.iam_allows


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a request may go on, and why."""

    allowed: bool
    explicit: bool
    """Whether a Deny statement decided."""
    reasons: tuple[str, ...]
    """For the log: one for each statement that concerns the request."""


def parse_policy(text: str) -> tuple[Statement, ...]:
    """Read a key policy.

    Raises:
        KmsError: It is malformed (MalformedPolicyDocumentException), or has what this KMS cannot evaluate
            (UnsupportedOperationException).
    """
    try:
        policy = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise malformed("it is not JSON") from error
    if not isinstance(policy, dict):
        raise malformed("it is not a map")
    statements = policy.get("Statement")
    statements = statements if isinstance(statements, list) else [statements]
    if len(statements) > STATEMENTS_MAX:
        raise malformed(f"it has more than {STATEMENTS_MAX} statements")
    return tuple(_statement(position, statement) for position, statement in enumerate(statements, 1))


def decide(statements: Iterable[Statement], request: Request) -> Decision:
    """Evaluate a policy."""
    allowed, reasons = False, []
    for statement in statements:
        if not statement.concerns(request):
            continue
        if not statement.is_for(request.caller):
            reasons.append(f"{statement.name} is not for {request.caller.arn}")
            continue
        if failed := statement.failed(request):
            reasons += [f"{statement.name}: {_said(condition, request)}" for condition in failed]
            continue
        if statement.denies:
            return Decision(allowed=False, explicit=True, reasons=(f"{statement.name} denies it",))
        allowed = True
    if not allowed and not reasons:
        reasons = [f"no statement of the key policy is about {request.action}"]
    return Decision(allowed=allowed, explicit=False, reasons=tuple(reasons))


def _said(condition: Condition, request: Request) -> str:
    found = request.context.get(condition.key.lower())
    has = "nothing" if found is None else " and ".join(found) or "no values"
    register = " (PCR0)" if condition.key.lower().endswith(":imagesha384") else ""
    return f"{condition}{register} does not hold, the request has {has}"


def _statement(position: int, statement: object) -> Statement:
    name = f"statement {position}"
    match statement:
        case {"Effect": "Allow" | "Deny" as effect, **rest}:
            pass
        case _:
            raise malformed(f"{name} has no Effect, Allow or Deny")
    match rest.get("Sid"):
        case str(sid) if sid:
            name = f"statement {sid!r}"
    negated = {part: f"Not{part}" in rest for part in ("Principal", "Action")}
    if "NotResource" in rest:
        raise malformed(f"{name} has NotResource, which key policies do not have")
    for part, is_negated in negated.items():
        if (part in rest) is is_negated:
            raise malformed(f"{name} needs either {part} or Not{part}")
    return Statement(
        name=name,
        denies=effect == "Deny",
        principals=_principals(name, rest["NotPrincipal" if negated["Principal"] else "Principal"]),
        not_principals=negated["Principal"],
        actions=_texts(name, rest["NotAction" if negated["Action"] else "Action"]),
        not_actions=negated["Action"],
        resources=_texts(name, rest.get("Resource", "*")),
        conditions=parse(rest.get("Condition", {})),
    )


def _principals(name: str, value: object) -> tuple[str, ...]:
    match value:
        case "*":
            return ("*",)
        case dict(kinds):
            # Services and federated users are principals, too, and never callers here.
            return tuple(
                text for kind, texts in kinds.items() if kind == "AWS" for text in _texts(name, texts)
            )
    raise malformed(f"{name} has a malformed principal")


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise malformed(f"{name} has something that is neither a text nor a list of texts")
    return tuple(texts)
