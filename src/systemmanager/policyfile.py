"""`policy.yaml` as one frozen Policy: who is granted what. Rights that no file gives are not there."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from systemmanager import yamlfile
from systemmanager.errors import ConfigError, Problem, UnknownTarget
from systemmanager.operation import Risk
from systemmanager.params import AbsolutePath, NotBoolean, StackName
from systemmanager.policy.compose.repository import plain
from systemmanager.policy.demands import NO_DEMANDS, Approvals, Channel, Demand
from systemmanager.policy.grants import GrantRule, granted_to
from systemmanager.request import Grant
from systemmanager.scopes import expand
from systemmanager.selectors import matches, selector
from systemmanager.stacks import NO_STACKS, Exemption, StackRules
from systemmanager.target import HostPattern, Target


def _readable(expression: str) -> str:
    try:
        selector(expression)
    except UnknownTarget as error:
        raise ValueError(f"{error.message}. {error.hint}") from None
    return expression


def _scopes(names: tuple[str, ...]) -> tuple[str, ...]:
    expand(names)
    return names


def _one_spelling(url: str) -> str:
    found = plain(url)
    if found is None:
        raise ValueError("is no https or ssh address of a repository")
    return found.url


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


class DemandEntry(_Model):
    """Calls that need an approval although their tool does not say so."""

    risks: Annotated[tuple[Literal["moderate", "high", "critical"], ...], Field(min_length=1)]
    targets: Selector | None = Field(default=None, description="Selector; without it on all targets.")

    def demand(self) -> Demand:
        return Demand(frozenset(map(Risk, self.risks)), self.targets)


class ApprovalsEntry(_Model):
    """Who must say yes, and how."""

    channels: Annotated[tuple[Channel, ...], Field(min_length=1)] = Field(
        default=NO_DEMANDS.channels, description="Tried in this order; what is not named can't answer."
    )
    elicitation: Literal["none", "low", "moderate", "high", "critical"] = Field(
        default="none", description="Highest risk that the person at the client may approve."
    )
    approvers: tuple[Subject, ...] | None = Field(
        default=None,
        description="Who may answer: root, local:1000, ann@example.com, *@example.com.",
    )
    lifetime_minutes: Annotated[int, Field(ge=1, le=1440), NotBoolean] = Field(
        default=30, description="How long a request waits, and a yes for its use."
    )
    require: tuple[DemandEntry, ...] = ()

    def approvals(self) -> Approvals:
        return Approvals(
            tuple(dict.fromkeys(self.channels)),
            None if self.elicitation == "none" else Risk(self.elicitation),
            self.approvers,
            self.lifetime_minutes * 60,
            tuple(entry.demand() for entry in self.require),
        )


class ExceptionEntry(_Model):
    """What one stack from one repository may have although no stack may."""

    stack: StackName
    repo: Annotated[str, AfterValidator(_one_spelling)]
    allow: Annotated[tuple[Annotated[str, StringConstraints(pattern=r"^[!-~]{1,300}$")], ...], Field(min_length=1)] = (
        Field(description="Names from the refusal: host_pid, bind:/proc ...")
    )
    services: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None, description="Only these services of it."
    )

    def exemption(self) -> Exemption:
        services = None if self.services is None else frozenset(self.services)
        return Exemption(self.stack, self.repo, frozenset(self.allow), services)


class StacksEntry(_Model):
    """Where Compose stacks come from, and what they may have."""

    hosts: tuple[HostPattern, ...] = Field(default=(), description="Git servers: names, globs, addresses, CIDR.")
    roots: tuple[AbsolutePath, ...] = Field(default=(), description="Folders of a target that stacks may mount.")
    exceptions: tuple[ExceptionEntry, ...] = ()

    def rules(self) -> StackRules:
        return StackRules(self.hosts, self.roots, tuple(one.exemption() for one in self.exceptions))


class PolicyDocument(_Model):
    """A whole `policy.yaml`."""

    version: Literal["1.0"]
    grants: tuple[GrantEntry, ...] = ()
    approvals: ApprovalsEntry = ApprovalsEntry()
    stacks: StacksEntry = StacksEntry()
    taint_minutes: Annotated[int, NotBoolean, Field(ge=0, le=1440)] = Field(
        default=10, description="So long after reading text from targets changes need an approval; 0: never."
    )


@dataclass(frozen=True, slots=True)
class Policy:
    """What `policy.yaml` says. `version` names this text of it in the audit log and in approvals."""

    grants: tuple[GrantRule, ...] = ()
    version: str = "built-in"
    source: str = "built-in"
    approvals: Approvals = NO_DEMANDS
    taint_minutes: int = 10
    stacks: StackRules = NO_STACKS

    def grants_for(self, subject: str, groups: Collection[str] = (), tags: Collection[str] = ()) -> tuple[Grant, ...]:
        """What one caller holds by it."""
        return granted_to(self.grants, subject, groups, tags)

    def changes(self, newer: "Policy") -> dict[str, list[str]]:
        """What `newer` grants beyond this one and no longer, and which of its other parts are others."""
        older_grants, newer_grants = set(self.grants), set(newer.grants)
        parts = ("approvals", "taint_minutes", "stacks")
        return {
            "added": sorted(rule.text for rule in newer_grants - older_grants)[:MOST_TOLD],
            "removed": sorted(rule.text for rule in older_grants - newer_grants)[:MOST_TOLD],
            "changed": [part for part in parts if getattr(self, part) != getattr(newer, part)],
        }

    def demands(self, risk: Risk, target: Target) -> str | None:
        """Why it wants an approval for a call of this risk on a target; None when it does not."""
        for demand in self.approvals.require:
            if risk in demand.risks and (demand.targets is None or matches(demand.targets, target)):
                return f"policy.yaml requires for {risk} calls" + (f" on {demand.targets}" if demand.targets else "")
        return None


MOST_TOLD = 50
"""Grants that are told of a reload, each."""

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
        approvals=document.approvals.approvals(),
        taint_minutes=document.taint_minutes,
        stacks=document.stacks.rules(),
    )
