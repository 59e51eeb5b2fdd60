"""Grants: which scopes whoever calls holds on which targets, as `policy.yaml` gives them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from systemmanager.request import Grant
from systemmanager.scopes import BUNDLES

LONGEST = 400
"""Characters of a grant's text."""


@dataclass(frozen=True, slots=True)
class GrantRule:
    """One entry of `grants`: whom it names, and what they hold.

    A subject is a whole name, or `*@example.com` for everybody of one domain. Naming nobody grants nobody.
    """

    subjects: frozenset[str]
    groups: frozenset[str]
    tags: frozenset[str]
    grant: Grant

    @property
    def text(self) -> str:
        """In one line, for the record: who, what, where."""
        who = sorted([*self.subjects, *(f"group {group}" for group in self.groups), *self.tags])
        held = [name for name, scopes in BUNDLES.items() if scopes == self.grant.scopes] or sorted(self.grant.scopes)
        where = f" on {self.grant.targets}" if self.grant.targets else ""
        return f"{', '.join(who)}: {', '.join(held)}{where}"[:LONGEST]

    def names(self, subject: str, groups: Collection[str], tags: Collection[str]) -> bool:
        """Whether it is for this caller."""
        name, at, domain = subject.rpartition("@")
        everybody = f"*@{domain}" if at and name and name != "*" else subject
        return (
            subject in self.subjects
            or everybody in self.subjects
            or not self.groups.isdisjoint(groups)
            or not self.tags.isdisjoint(tags)
        )


def granted_to(
    rules: Iterable[GrantRule], subject: str, groups: Collection[str] = (), tags: Collection[str] = ()
) -> tuple[Grant, ...]:
    """All that the rules give to one caller; nothing when none names them."""
    return tuple(rule.grant for rule in rules if rule.names(subject, groups, tags))


def narrowed(grants: Iterable[Grant], scopes: Collection[str]) -> tuple[Grant, ...]:
    """The grants with these scopes only: what a credential names can take away, never add."""
    kept = (Grant(grant.scopes.intersection(scopes), grant.targets) for grant in grants)
    return tuple(grant for grant in kept if grant.scopes)


def common(grants: Iterable[Grant], others: Collection[Grant]) -> tuple[Grant, ...]:
    """What two lists of grants both give."""
    return tuple(both for grant in grants for other in others if (both := _both(grant, other)))


def _both(grant: Grant, other: Grant) -> Grant | None:
    """What two grants have in common."""
    scopes = grant.scopes & other.scopes
    selectors = list(dict.fromkeys(one.targets for one in (grant, other) if one.targets is not None))
    targets = f"({selectors[0]}) and ({selectors[1]})" if len(selectors) == 2 else next(iter(selectors), None)
    return Grant(scopes, targets) if scopes else None
