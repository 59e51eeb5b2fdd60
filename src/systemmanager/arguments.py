"""From raw arguments to validated ones: an operation's own parameters plus those that every tool shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, ValidationError, WithJsonSchema, create_model
from pydantic_core import ErrorDetails

from systemmanager.errors import InvalidArguments, nearest
from systemmanager.operation import Operation, Risk
from systemmanager.params import Format
from systemmanager.waves import Strategy

Selector = Annotated[str, StringConstraints(max_length=500)]
Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
ApprovalId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Selectors = Annotated[list[Selector], Field(max_length=1000)] | Selector

_TARGET = (Selector | None, Field(default=None, description="Id or selector; default local."))
_TARGETS = (Selectors | None, Field(default=None))
_REQUIRED = (Selectors, Field(description="Ids or selectors."))
_FORMAT = (Format, Field(default="json"))
_DRY_RUN = (bool, Field(default=False, description="Only plan: gives a plan_id."))
_WAIT = (float, Field(default=0, ge=0, le=300, description="Seconds."))
_STRATEGY = (
    Annotated[Strategy, WithJsonSchema({"type": "object"})] | None,
    Field(default=None, description="Waves: batch 1,10%,50%,100%; max_failures 0; pause 0; health true"),
)
_APPROVAL = (ApprovalId | None, Field(default=None, description="Once given."))

_JOB_WAIT = (float, Field(default=25, ge=0, le=300, description="Seconds, then a job."))
_KEY = (Key | None, Field(default=None))

OF_JOBS = frozenset({"wait", "idempotency_key"})
MOST_PROBLEMS = 10


@dataclass(frozen=True, slots=True)
class Later:
    """The caller comes back for the answer: a job is waited for so many seconds, where the call itself does not say how
    long; with `always` even a call that would be none is a job."""

    wait: float
    always: bool = False


@dataclass(frozen=True, slots=True)
class Shared:
    """The shared parameters. `targets` is None when the call names none; `always_job` is no parameter: who says how
    long they wait, or under which key, gets a job for every tool that takes these."""

    targets: tuple[str, ...] | None
    format: Format
    dry_run: bool
    approval_id: str | None = None
    approval_wait: float = 0
    strategy: Strategy | None = None
    wait: float = 25
    idempotency_key: str | None = None
    always_job: bool = False

    def until(self, later: Later, raw: Mapping[str, Any]) -> "Shared":
        """These of a call whose caller comes back for the answer."""
        return replace(
            self, wait=self.wait if "wait" in raw else later.wait, always_job=later.always or self.always_job
        )

    @property
    def planned(self) -> dict[str, Any]:
        """What of them a plan holds, beside its targets."""
        return {} if self.strategy is None else {"strategy": self.strategy.model_dump()}


@cache
def call_model(operation: Operation) -> type[BaseModel]:
    """The model of everything that a call of this operation may hold; its schema is the tool's input schema."""
    shared: dict[str, Any] = {"format": _FORMAT}
    if operation.selection == "optional":
        shared |= {"target": _TARGET, "targets": _TARGETS}
    elif operation.selection == "required":
        shared |= {"targets": _REQUIRED}
    if operation.mutates or operation.access.approval:
        shared |= {"dry_run": _DRY_RUN}
    if operation.mutates and operation.selection != "none":
        shared |= {"strategy": _STRATEGY}
    if operation.mutates or any(_may_ask(form) for form in operation.every_form):
        shared |= {"approval_id": _APPROVAL, "approval_wait": _WAIT}
    if operation.job or "strategy" in shared:
        shared |= {"wait": _JOB_WAIT, "idempotency_key": _KEY}
    return create_model(operation.arguments.__name__, __base__=operation.arguments, **shared)


@cache
def may_be_job(operation: Operation) -> bool:
    """Whether some call of it may outlast its caller."""
    return operation.job is not None or "strategy" in call_model(operation).model_fields


def _may_ask(operation: Operation) -> bool:
    """Whether some use of it may need a person's yes."""
    return any(access.approval or access.risk is not Risk.LOW for access in operation.accesses)


def validate(operation: Operation, raw: Mapping[str, Any]) -> tuple[dict[str, Any], Shared]:
    """The operation's own arguments by name, and the shared ones. Raises `InvalidArguments`, naming every wrong one."""
    model = call_model(operation)
    try:
        values = model.model_validate(dict(raw))
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems = [problem[:200] for problem in _problems(details, model)]
        if len(problems) > MOST_PROBLEMS:
            problems = [*problems[:MOST_PROBLEMS], f"and {len(problems) - MOST_PROBLEMS} more"]
        raise InvalidArguments(
            f"{operation.name}: {'; '.join(problems)}", hint=f"Parameters: {', '.join(model.model_fields)}."
        ) from None
    own = {name: getattr(values, name) for name in operation.arguments.model_fields}
    target, targets = getattr(values, "target", None), getattr(values, "targets", None)
    if target is not None and targets is not None:
        raise InvalidArguments(f"{operation.name}: give target or targets, not both")
    named = targets if isinstance(targets, list) else [targets if targets is not None else target]
    chosen = None if named == [None] else tuple(str(one) for one in named)
    optional = ("approval_id", "approval_wait", "strategy", "wait", "idempotency_key")
    rest = {name: getattr(values, name) for name in optional if hasattr(values, name) and name not in own}
    dry_run, job = getattr(values, "dry_run", False), not values.model_fields_set.isdisjoint(OF_JOBS - own.keys())
    return own, Shared(chosen, getattr(values, "format", "json"), dry_run, always_job=job and not dry_run, **rest)


def _problems(errors: Sequence[ErrorDetails], model: type[BaseModel]) -> list[str]:
    """What is wrong, once each. Of a value that may be of several types, the one that it nearly is counts."""
    found: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for details in errors:
        place = tuple(part for part in details["loc"] if not _is_branch(part))
        found.setdefault(place[:1], []).append(details)
    problems = []
    for several in found.values():
        nearly = [one for one in several if not one["type"].endswith("_type")] or several
        depth = max(len(one["loc"]) for one in nearly)
        nearly = [one for one in nearly if len(one["loc"]) == depth]
        first, *others = dict.fromkeys(_problem(one, model) for one in nearly)
        common = f"{first.partition(' ')[0]} input should be "
        joined = all(one.startswith(common) for one in (first, *others))
        problems += (
            [" or ".join((first, *(one.removeprefix(common) for one in others)))] if joined else [first, *others]
        )
    return problems


def _problem(details: ErrorDetails, model: type[BaseModel]) -> str:
    if details["type"] == "extra_forbidden":
        name = str(details["loc"][-1])
        near = nearest(name, model.model_fields)
        return f"there is no parameter {name[:64]!r}" + (f", did you mean {near[0]!r}?" if near else "")
    name = ".".join(str(part) for part in details["loc"] if not _is_branch(part)) or "arguments"
    if details["type"] == "missing":
        return f"{name} is missing"
    if details["type"] == "model_type":
        return f"{name} input should be an object"
    if details["type"] == "string_pattern_mismatch":
        return f"{name} is not of the form that it must have, {details['ctx']['pattern']}"
    message = details["msg"].removeprefix("Value error, ")
    return f"{name} {message[:1].lower()}{message[1:]}"


def _is_branch(part: int | str) -> bool:
    """Whether a part of an error's location names a branch of a union, not a parameter."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "list", "constrained-str"))
