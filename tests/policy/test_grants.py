"""Who is granted what by policy.yaml, and that a credential's own scopes only ever take away."""

from typing import Any

import pytest

from systemmanager.policy.grants import GrantRule, granted_to, narrowed
from systemmanager.request import Grant

READ, WRITE = Grant(frozenset({"system:read"})), Grant(frozenset({"service:write"}), "tag:web")


def rule(grant: Grant = READ, **who: Any) -> GrantRule:
    named = {kind: frozenset(who.get(kind, ())) for kind in ("subjects", "groups", "tags")}
    return GrantRule(**named, grant=grant)


NAMED: dict[str, tuple[GrantRule, str, bool]] = {
    "whole name": (rule(subjects=["ann@example.com"]), "ann@example.com", True),
    "domain": (rule(subjects=["*@example.com"]), "ann@example.com", True),
    "group": (rule(groups=["ops"]), "bob", True),
    "tag": (rule(tags=["tag:ci"]), "bob", True),
    "one of three": (rule(subjects=["x"], groups=["y"], tags=["tag:ci"]), "bob", True),
    "nobody": (rule(), "bob", False),
    "another name": (rule(subjects=["ann@example.com"]), "anna@example.com", False),
    "longer name": (rule(subjects=["ann"]), "ann@example.com", False),
    "case": (rule(subjects=["ann@example.com"]), "Ann@example.com", False),
    "subdomain": (rule(subjects=["*@example.com"]), "ann@sub.example.com", False),
    "longer domain": (rule(subjects=["*@example.com"]), "ann@example.com.evil", False),
    "domain without a name": (rule(subjects=["*@example.com"]), "@example.com", False),
    "domain alone": (rule(subjects=["*@example.com"]), "example.com", False),
    "the pattern as a name": (rule(subjects=["*@example.com"]), "*@example.com@evil", False),
    "two at signs": (rule(subjects=["*@example.com"]), "x@evil@example.com", True),
    "group as subject": (rule(groups=["ops"]), "ops", True),
    "another group": (rule(groups=["dev"]), "bob", False),
    "tag as group": (rule(groups=["tag:ci"]), "bob", False),
}


@pytest.mark.parametrize(("one", "subject", "named"), NAMED.values(), ids=NAMED)
def test_whom_a_rule_names(one: GrantRule, subject: str, named: bool) -> None:
    assert one.names(subject, ("ops",), ("tag:ci",)) is named
    assert granted_to([one], subject, ("ops",), ("tag:ci",)) == ((READ,) if named else ())


def test_grants_add_up_and_keep_their_targets() -> None:
    rules = [rule(subjects=["ann"]), rule(WRITE, groups=["ops"]), rule(subjects=["bob"])]
    assert granted_to(rules, "ann", ["ops"]) == (READ, WRITE)
    assert granted_to(rules, "ann") == (READ,)
    assert granted_to(rules, "eve") == ()


def test_a_credentials_scopes_narrow_and_never_widen() -> None:
    assert narrowed([READ, WRITE], ["service:write", "system:admin"]) == (WRITE,)
    assert narrowed([READ, WRITE], []) == ()
    assert narrowed([READ], ["system:read", "system:write"]) == (READ,)
