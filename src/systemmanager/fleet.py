"""The Fleet port: what the gateway answers about itself, narrowed to the rights of the principal who asks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from systemmanager import __version__
from systemmanager.arguments import validate
from systemmanager.audit.reading import query
from systemmanager.errors import AuditUnavailable, NotFound, UnknownTarget, did_you_mean
from systemmanager.operation import CATALOGUE, Operation
from systemmanager.ports import Json
from systemmanager.request import Principal
from systemmanager.selectors import matches
from systemmanager.target import EXECUTOR_PORTS, LocalTarget, Target

if TYPE_CHECKING:
    from systemmanager.gateway import Gateway

GATEWAY = "gateway"
"""The target name under which the gateway answers about itself."""


@cache
def gateway_target() -> Target:
    """What stands in for a target when the gateway answers about itself; only Fleet operations ever see it."""
    return LocalTarget(id=GATEWAY, executor="local", capabilities=("admin",))


def usable(principal: Principal, operation: Operation, target: Target) -> bool:
    """Whether any use of the operation is within the principal's scopes and the target's capabilities and ports."""
    return operation.port in EXECUTOR_PORTS[target.executor] and any(
        _any(access.scopes, held) and _any(access.capabilities, target.offers)
        for held in _held(principal, target)
        for access in operation.accesses
    )


def visible(principal: Principal, operation: Operation, targets: Sequence[Target]) -> bool:
    """Whether the principal can use the operation on at least one target. A courtesy: the gate does not rely on it."""
    if operation.selection == "none" or operation.without_targets:
        return any(principal.holds(access.scopes) for access in operation.accesses)
    return any(usable(principal, operation, target) for target in targets)


def _held(principal: Principal, target: Target) -> Iterator[frozenset[str]]:
    """The scopes of each grant that holds on the target."""
    for grant in principal.grants:
        with suppress(UnknownTarget):
            if grant.targets is None or matches(grant.targets, target):
                yield grant.scopes


def _any(needed: tuple[str, ...], held: frozenset[str]) -> bool:
    return not needed or any(name in held for name in needed)


class FleetView:
    """The Fleet port for one principal."""

    def __init__(self, gateway: "Gateway", principal: Principal) -> None:
        self._gateway = gateway
        self._principal = principal

    def targets(self, selector: str | None = None) -> list[Json]:
        registry = self._gateway.registry
        within = registry.within(self._principal.grants)
        chosen = registry.select([selector], within) if selector else list(registry.targets.values())
        return [row for target in chosen if (row := self._row(target)) is not None]

    def _row(self, target: Target) -> Json | None:
        tools = [
            operation.name
            for operation in CATALOGUE.values()
            if operation.port != "Fleet" and usable(self._principal, operation, target)
        ]
        if not tools:
            return None
        metadata = target.metadata
        row: Json = {"id": target.id, "kind": target.executor, "capabilities": sorted(target.offers)}
        optional = {"tags": list(metadata.tags), "environment": metadata.environment, "role": metadata.role}
        row |= {name: value for name, value in optional.items() if value}
        if fault := self._gateway.registry.faults.get(target.id):
            row["fault"] = fault
        return row

    def explain(self, tool: str, target: str, arguments: Mapping[str, Any]) -> Json:
        operation = CATALOGUE.get(tool)
        if operation is None:
            raise NotFound(f"there is no tool {tool!r}", hint=did_you_mean(tool, CATALOGUE))
        own, _ = validate(operation, {**arguments, **_selection(operation, target)})
        gateway, principal = self._gateway, self._principal
        targets = gateway.chosen(principal, operation, (target,), gateway.registry)
        rows = []
        for chosen, decision in zip(targets, gateway.explain(principal, operation, own, targets), strict=True):
            row: Json = {"target": chosen.id, "answer": decision.answer.value}
            # Who holds nothing on a target learns that, and nothing of the target.
            foreign = [verdict for verdict in decision.verdicts if verdict.code == "target_not_granted"]
            verdicts = foreign or decision.verdicts
            row["verdicts"] = [
                {"rule": verdict.rule, "answer": verdict.answer.value, "reason": verdict.reason} for verdict in verdicts
            ]
            if fixes := [verdict.fix for verdict in verdicts if verdict.answer != "allow" and verdict.fix]:
                row["grant"] = fixes
            rows.append(row)
        return {"tool": tool, "principal": principal.subject, "results": rows}

    def audit(self, **filters: Any) -> Iterator[Json]:
        path, grants = self._gateway.journal.log.path, self._principal.grants
        holds = [grant for grant in grants if "audit:read" in grant.scopes]
        within = None if any(grant.targets is None for grant in holds) else self._gateway.registry.within(holds)
        try:
            for record in query(path, **filters):
                if within is None or record.get("target") in within:
                    yield record
        except OSError as error:
            raise AuditUnavailable(f"the audit log can't be read: {error.strerror or error}") from error

    def health(self) -> Json:
        gateway = self._gateway
        registry, frozen = gateway.registry, gateway.freezer.now()
        stopped = {"frozen": f"{frozen.parts} by {frozen.by}; systemmanager thaw ends it"} if frozen.anything else {}
        return {
            "version": __version__,
            "targets": len(registry.targets),
            "registry": {"source": registry.source, "version": registry.version},
            "policy": {"source": gateway.policy.source, "version": gateway.policy.version},
            "problems": {**stopped, **gateway.degraded, **{f"target {id}": why for id, why in registry.faults.items()}},
        }


def _selection(operation: Operation, target: str) -> dict[str, Any]:
    return {} if operation.selection == "none" else {"targets": [target]}
