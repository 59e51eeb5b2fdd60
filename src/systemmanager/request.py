"""What the policy gate is asked and what it answers. Frozen values; load comes in the Request, never from a clock."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from systemmanager.operation import Access, Operation, Risk
from systemmanager.stacks import NO_STACKS, StackJudge, StackRules
from systemmanager.target import Target

PrincipalKind = Literal["operator", "token", "person", "node"]


@dataclass(frozen=True, slots=True)
class Grant:
    """Canonical scopes, held on the targets that a selector names (None: on all)."""

    scopes: frozenset[str]
    targets: str | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, what they hold, and how it was verified. A node has tags, a person may have groups; `credential` is
    the id of a token of the gateway's own."""

    subject: str
    kind: PrincipalKind
    grants: tuple[Grant, ...]
    verified_by: str
    groups: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    credential: str | None = None

    def holds(self, scopes: Collection[str]) -> bool:
        """Whether any of the scopes is held on any target; so is what needs none."""
        return any(_any_of(scopes, grant) for grant in self.grants)


def _any_of(scopes: Collection[str], grant: Grant) -> bool:
    return not scopes or not grant.scopes.isdisjoint(scopes)


@dataclass(frozen=True, slots=True)
class Load:
    """What runs at the moment the gate is asked.

    `recent`: the principal's calls within the last minute, per risk, this one not counted; `running`: calls in flight
    or waiting for a slot on this target.
    """

    recent: Mapping[Risk, int] = field(default_factory=dict)
    running: int = 0


@dataclass(frozen=True, slots=True)
class Freeze:
    """What an operator has stopped, as it concerns one target; `here` is the selector that stops this one."""

    everything: bool = False
    writes: bool = False
    egress: bool = False
    here: str | None = None


NOT_FROZEN = Freeze()


@dataclass(frozen=True, slots=True)
class Request:
    """One policy question: may this principal use this operation with these arguments on this target, now?

    `arguments` are the validated ones, by name. `via` are the jump hosts on the way, outermost first. `fault` is what
    the target lacks to be used. `granted` are the principal's grants that hold on this target; `root` says that the
    target is reached as root already. `neighbours` are names and addresses of all targets that any grant of the
    principal holds on: diagnostics may reach those.
    `weakened` are the parts of the gateway's own sandbox that are required and missing.
    `demanded` says why policy.yaml wants an approval; `approvers` are the people who said yes to exactly this call,
    `approval` the id of the request that was used up for it.
    `tainted`: so many seconds ago the principal has read text that others wrote; `taint_lasts`: so long that counts.
    `own`: the gateway itself is asked, and no target. `stacks` is what policy.yaml says of Compose stacks.
    `plan` is what a person is shown of what the call would do.
    """

    call_id: str
    principal: Principal
    operation: Operation
    access: Access
    arguments: Mapping[str, Any]
    target: Target
    via: tuple[Target, ...] = ()
    fault: str | None = None
    granted: tuple[Grant, ...] = ()
    load: Load = field(default_factory=Load)
    root: bool = False
    neighbours: frozenset[str] = frozenset()
    freeze: Freeze = NOT_FROZEN
    weakened: tuple[str, ...] = ()
    demanded: str | None = None
    approvers: tuple[str, ...] = ()
    approval: str = ""
    tainted: float | None = None
    taint_lasts: float = 0.0
    dry_run: bool = False
    own: bool = False
    stacks: StackRules = NO_STACKS
    plan: Mapping[str, Any] | None = None

    @property
    def approved(self) -> bool:
        """Whether as many people said yes as the target wants."""
        return len(self.approvers) >= (2 if self.target.constraints.dual_approval else 1)

    @property
    def plan_id(self) -> str | None:
        """The plan that is carried out, or asked about."""
        return None if self.plan is None else str(self.plan["plan_id"])

    @property
    def approved_by(self) -> str | None:
        """Who said yes, for the record."""
        return " and ".join(self.approvers) or None


class Answer(StrEnum):
    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One rule's answer. `fix` is the smallest change that would turn a Deny or Ask into an Allow; `details` are for a
    program that reads the answer."""

    rule: str
    answer: Answer
    reason: str
    code: str = "denied"
    fix: str | None = None
    retryable: bool = False
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Permit:
    """The gate's word that one Request may run. Executors open for nothing else; only `policy/gate.py` makes one.

    `judge` goes with it where what is to run is only known on the way: a stack's configuration.
    A `rehearsal` is for looking at what the operation would do: it gets no root by sudo, and changes nothing.
    """

    call_id: str
    target: Target
    via: tuple[Target, ...]
    access: Access
    timeout: float
    neighbours: frozenset[str] = frozenset()
    judge: StackJudge | None = None
    rehearsal: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """All verdicts of one Request, and the Permit when every one of them allows."""

    verdicts: tuple[Verdict, ...]
    permit: Permit | None

    @property
    def answer(self) -> Answer:
        answers = {verdict.answer for verdict in self.verdicts}
        return Answer.DENY if Answer.DENY in answers else Answer.ASK if Answer.ASK in answers else Answer.ALLOW

    @property
    def against(self) -> Verdict:
        """The verdict that decided against the call."""
        return next(verdict for verdict in self.verdicts if verdict.answer is self.answer)
