"""`policy.yaml` as one frozen Policy: who is granted what. Rights that no file gives are not there."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from systemmanager import yamlfile
from systemmanager.errors import ConfigError, Problem, UnknownTarget
from systemmanager.policy.grants import GrantRule, granted_to
from systemmanager.request import Grant
from systemmanager.scopes import expand
from systemmanager.selectors import selector


def _readable(expression: str) -> str:
    try:
        selector(expression)
    except UnknownTarget as error:
        raise ValueError(f"{error.message}. {error.hint}") from None
    return expression


def _scopes(names: tuple[str, ...]) -> tuple[str, ...]:
    expand(names)
    return names


# ASCII without blanks and stars: a name that looks like another one must not read like a grant for it.
Subject = Annotated[str, StringConstraints(max_length=254, pattern=r"^(\*@)?[!-)+-~]+$")]
Group = Annotated[str, StringConstraints(max_length=254, pattern=r"^[!-~]([ -~]*[!-~])?$")]
Tag = Annotated[str, StringConstraints(max_length=254, pattern=r"^tag:[a-zA-Z][a-zA-Z0-9-]*$")]
Selector = Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(_readable)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GrantEntry(_Model):
    """Scopes for whoever is named, on the targets that a selector names."""

    subjects: tuple[Subject, ...] = Field(default=(), description="Whole names, or *@example.com.")
    groups: tuple[Group, ...] = ()
    tags: tuple[Tag, ...] = Field(default=(), description="Tags of Tailscale nodes: tag:ci.")
    scopes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_scopes)]
    targets: Selector | None = Field(default=None, description="Selector; without it the grant holds on all targets.")

    @model_validator(mode="after")
    def _for_somebody(self) -> "GrantEntry":
        if not (self.subjects or self.groups or self.tags):
            raise ValueError("names nobody: give subjects, groups or tags")
        return self

    def rule(self) -> GrantRule:
        return GrantRule(
            frozenset(self.subjects),
            frozenset(self.groups),
            frozenset(self.tags),
            Grant(expand(self.scopes), self.targets),
        )


class PolicyDocument(_Model):
    """A whole `policy.yaml`."""

    version: Literal["1.0"]
    grants: tuple[GrantEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """What `policy.yaml` says. `version` names this text of it in the audit log and in approvals."""

    grants: tuple[GrantRule, ...] = ()
    version: str = "built-in"
    source: str = "built-in"

    def grants_for(self, subject: str, groups: Collection[str] = (), tags: Collection[str] = ()) -> tuple[Grant, ...]:
        """What one caller holds by it."""
        return granted_to(self.grants, subject, groups, tags)


BUILTIN = Policy()
"""The policy of a gateway without `policy.yaml`: it grants nothing to anybody."""


def load(path: Path) -> Policy:
    """Read and check a `policy.yaml`. Raises `ConfigError` with every problem and its place."""
    loaded = yamlfile.load(path)
    where = str(path)
    if not isinstance(loaded.data, dict):
        raise ConfigError(loaded.problems or [Problem(where, "must hold `version` and `grants`", 1, 1)])
    problems = list(loaded.problems)
    try:
        document = PolicyDocument.model_validate(loaded.data)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        raise ConfigError([*problems, *yamlfile.problems_of(wrong, PolicyDocument, loaded, where)]) from None
    if problems:
        raise ConfigError(problems)
    return Policy(
        tuple(entry.rule() for entry in document.grants),
        version=hashlib.sha256(loaded.text.encode()).hexdigest()[:12],
        source=where,
    )
