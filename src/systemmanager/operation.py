"""An operation: one thing the gateway can do, declared once by `@operation` on a function.

Name, description, schemas, rights and risk are all read from that declaration. The function's first parameter is the
port it needs (`systemmanager.ports`); the others are its arguments, by name. A keyword-only `shown` is the gateway's.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, ParamSpec, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from systemmanager import ports
from systemmanager.fencing import Places, places
from systemmanager.plan import Plan
from systemmanager.scopes import canonical
from systemmanager.stacks import Stacks


class Risk(StrEnum):
    LOW = "low"
    MODERATE = "moderate"
    HIGH = "high"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Access:
    """What one use of an operation demands. Any one of `scopes` and of `capabilities` is enough; () needs none."""

    scopes: tuple[str, ...]
    capabilities: tuple[str, ...]
    risk: Risk
    approval: bool = False
    privileged: bool = False
    changes: bool = False

    @property
    def mutates(self) -> bool:
        """Whether it may change something: it says so, or it takes a scope for more than reading and diagnostics. What
        the right to read is enough for changes nothing, whichever other scopes are enough, too."""
        verbs = {scope.rpartition(":")[2] for scope in self.scopes}
        return self.changes or ("read" not in verbs and not verbs <= {"diag"})


Selection = Literal["optional", "required", "none"]

JobKind = Literal["steps", "again", "once"]
"""What becomes of an operation whose gateway was stopped in the middle of it: its long steps run on by themselves on
the target, what it kept is there, and the rest is done again; all of it is done again; or what had begun stays as it
was cut off."""

AGAIN: frozenset[JobKind | None] = frozenset({"steps", "again"})
"""Those of which nothing is lost when their gateway is stopped."""


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One declared operation.

    `access` is the strongest use; `by` names the parameter whose value may demand less, `cases` what each one demands.
    `forms` are whole operations under this name, by what the value of `by` begins with: each has its own port and
    rights, and which one a call means is known before anything about it is decided.
    `roles` says which parameters the policy judges: `{"path": "path", "unit": "service_name", "host": "host", ...}`;
    a `host` is connected to, a `name` only asked about.
    `job`: it may outlast its caller, and what becomes of it then.
    `compares`: it takes `shown`, to compare texts as a caller would see them.
    `without_targets` runs on the Fleet port when the call names no target. `plan` takes what the function takes, only
    looks, and says what the function would do.
    """

    name: str
    area: str
    description: str
    function: Callable[..., Awaitable[ports.Result]]
    port: str
    arguments: type[BaseModel]
    result: type[BaseModel]
    access: Access
    timeout: float
    selection: Selection
    by: str | None = None
    cases: Mapping[str, Access] = field(default_factory=dict)
    forms: dict[str, "Operation"] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    foreign: Places = None
    fences: Places = None
    idempotent: bool = True
    open_world: bool = False
    job: JobKind | None = None
    without_targets: Callable[..., Awaitable[ports.Result]] | None = None
    plan: Callable[..., Awaitable[Plan]] | None = None
    compares: bool = False

    def access_for(self, arguments: Mapping[str, Any]) -> Access:
        """What this use demands, by the value of the deciding parameter where there is one."""
        return self.cases.get(str(arguments.get(self.by)), self.access) if self.by else self.access

    def meant(self, arguments: Mapping[str, Any]) -> "Operation":
        """The form of it that these arguments mean; itself where it has one form only."""
        given = str(arguments.get(self.by, "")) if self.by and self.forms else ""
        return next((form for begins, form in self.forms.items() if given.startswith(begins)), self)

    @property
    def every_form(self) -> tuple["Operation", ...]:
        return (self, *self.forms.values())

    @property
    def accesses(self) -> tuple[Access, ...]:
        """Every way to use it; a principal who holds one of them sees the tool."""
        return tuple(dict.fromkeys([*self.cases.values(), self.access])) if self.cases else (self.access,)

    @property
    def mutates(self) -> bool:
        return any(access.mutates for form in self.every_form for access in form.accesses)


CATALOGUE: dict[str, Operation] = {}

_PORTS = {
    port.__name__: port
    for port in (
        ports.Shell, ports.Files, ports.Facts, ports.Network, ports.Docker, Stacks, ports.Http, ports.Probe,
        ports.Fleet,
    )
}  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R", bound=ports.Result)


def _names(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if given is None else tuple(map(canonical, (given,) if isinstance(given, str) else given))


def demand(
    scope: str | tuple[str, ...] | None,
    capability: str | tuple[str, ...] | None,
    risk: Risk,
    *,
    approval: bool | None = None,
    privileged: bool = False,
    changes: bool = False,
) -> Access:
    """An `Access` from names as the seed writes them. Critical uses ask for an approval unless told otherwise."""
    needs_approval = risk is Risk.CRITICAL if approval is None else approval
    return Access(_names(scope), _names(capability), risk, needs_approval, privileged, changes)


def _signature(function: Callable[..., Any]) -> tuple[str, type[BaseModel], type[BaseModel]]:
    """Port, arguments model and result model, as the function's signature says."""
    if not function.__doc__:
        raise TypeError(f"{function.__name__}: an operation needs a docstring, it is what the model reads")
    hints = get_type_hints(function, include_extras=True)
    (first, *rest) = inspect.signature(function).parameters.values()
    port = hints[first.name].__name__
    if port not in _PORTS:
        raise TypeError(f"{function.__name__}: the first parameter must be a port, not {port}")
    fields: dict[str, Any] = {
        parameter.name: (hints[parameter.name], ... if parameter.default is parameter.empty else parameter.default)
        for parameter in rest
        if parameter.kind is not parameter.KEYWORD_ONLY
    }
    config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    model: type[BaseModel] = create_model(f"{function.__name__}_arguments", __config__=config, **fields)
    return port, model, hints["return"]


def operation(
    *,
    scope: str | tuple[str, ...] | None,
    capability: str | tuple[str, ...] | None = None,
    risk: Risk,
    timeout: float = 30.0,
    approval: bool | None = None,
    privileged: bool = False,
    changes: bool = False,
    by: str | None = None,
    cases: Mapping[str, Access] | None = None,
    roles: Mapping[str, str] | None = None,
    selection: Selection = "optional",
    idempotent: bool = True,
    open_world: bool = False,
    job: JobKind | None = None,
    without_targets: Callable[..., Awaitable[ports.Result]] | None = None,
    form_of: Callable[..., Any] | None = None,
    begins: str = "",
    plan: Callable[..., Awaitable[Plan]] | None = None,
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Declare an operation; the function stays what it was, so that operations can call each other.

    `timeout` is in seconds; a target's may be shorter. `changes`: it may change something, whatever its scope says.
    With `form_of` the function is what that operation does when the value of its deciding parameter `begins` so.
    """
    access = demand(scope, capability, risk, approval=approval, privileged=privileged, changes=changes)

    def declare(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        made = _operation(
            function,
            selection,
            access=access,
            timeout=timeout,
            by=by,
            cases=dict(cases or {}),
            roles=dict(roles or {}),
            idempotent=idempotent,
            open_world=open_world,
            job=job,
            without_targets=without_targets,
            plan=plan,
        )
        if form_of is None:
            CATALOGUE[made.name] = made
        else:
            _add_form(CATALOGUE[form_of.__name__], made, begins)
        return function

    return declare


def _operation(function: Callable[..., Any], selection: Selection, **declared: Any) -> Operation:
    port, arguments, result = _signature(function)
    return Operation(
        name=function.__name__,
        area=function.__module__.rpartition(".")[2],
        description=inspect.cleandoc(function.__doc__ or ""),
        function=function,
        port=port,
        arguments=arguments,
        result=result,
        selection="none" if port == "Fleet" else selection,
        compares="shown" in inspect.signature(function).parameters,
        foreign=places(result, fenced=False),
        fences=places(result, fenced=True),
        **declared,
    )


def _add_form(whole: Operation, form: Operation, begins: str) -> None:
    """A caller sees one tool: what differs by form is what it reaches and demands, nothing that a caller reads."""
    same = (
        whole.by and form.result is whole.result and [*form.arguments.model_fields] == [*whole.arguments.model_fields]
    )
    if not same:
        raise TypeError(f"{form.name}: a form of {whole.name} must have its parameters and its result")
    whole.forms[begins] = replace(
        form, name=whole.name, area=whole.area, description=whole.description, arguments=whole.arguments
    )
