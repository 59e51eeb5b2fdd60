"""The Fleet port: what the gateway answers about itself, narrowed to the rights of the principal who asks."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from systemmanager import __version__
from systemmanager.arguments import validate
from systemmanager.audit.reading import query
from systemmanager.errors import AuditUnavailable, InvalidArguments, UnknownTool, did_you_mean
from systemmanager.jobs.seen import SeenJobs
from systemmanager.operation import CATALOGUE, Operation
from systemmanager.ports import Json
from systemmanager.registry import Registry
from systemmanager.request import Principal
from systemmanager.target import EXECUTOR_PORTS, LocalTarget, Target

if TYPE_CHECKING:
    from systemmanager.gateway import Gateway

GATEWAY = "gateway"
"""The target name under which the gateway answers about itself."""

MOST_EXPLAINED = 500
"""Targets of one explanation: more would not fit into an answer."""


@cache
def gateway_target() -> Target:
    """What stands in for a target when the gateway answers about itself; only Fleet operations ever see it."""
    return LocalTarget(id=GATEWAY, executor="local", capabilities=("admin",))


def _any(needed: tuple[str, ...], held: frozenset[str]) -> bool:
    return not needed or not held.isdisjoint(needed)


def _usable(operation: Operation, executor: str, offers: frozenset[str], scopes: frozenset[str]) -> bool:
    """Whether any use of the operation is within these scopes and such a target's capabilities and ports."""
    return any(
        _any(access.scopes, scopes) and _any(access.capabilities, offers)
        for form in operation.every_form
        if form.port in EXECUTOR_PORTS[executor]
        for access in form.accesses
    )


class Usable:
    """What a principal can use of a registry. A courtesy: the gate does not rely on it.

    Ten thousand targets are of a few sorts, and each sort is looked at once.
    """

    def __init__(self, principal: Principal, registry: Registry) -> None:
        self._principal, self._registry = principal, registry
        self._grants = [(grant.scopes, registry.granted(grant)) for grant in principal.grants]
        self._sorts: dict[tuple[str, frozenset[str], tuple[frozenset[str], ...]], frozenset[str]] = {}

    def on(self, target: Target) -> frozenset[str]:
        """Names of the operations that can be used on a target."""
        held = tuple(scopes for scopes, ids in self._grants if target.id in ids)
        if not held:
            return frozenset()
        sort = (target.executor, target.offers, held)
        if (known := self._sorts.get(sort)) is None:
            known = self._sorts[sort] = frozenset(
                name
                for name, operation in CATALOGUE.items()
                if any(_usable(operation, *sort[:2], scopes) for scopes in held)
            )
        return known

    def anywhere(self) -> frozenset[str]:
        """Names of the operations that can be used on the gateway itself, or on at least one target."""
        for target in self._registry.targets.values():
            self.on(target)
        own = (
            name
            for name, operation in CATALOGUE.items()
            if (operation.selection == "none" or operation.without_targets)
            and any(self._principal.holds(access.scopes) for access in operation.accesses)
        )
        return frozenset(own).union(*self._sorts.values())


class FleetView:
    """The Fleet port for one principal."""

    def __init__(self, gateway: "Gateway", principal: Principal) -> None:
        self._gateway = gateway
        self._principal = principal

    def targets(self, selector: str | None = None) -> list[Json]:
        registry = self._gateway.registry
        within = registry.within(self._principal.grants)
        chosen = registry.select([selector], within) if selector is not None else list(registry.targets.values())
        usable = Usable(self._principal, registry)
        return [row for target in chosen if (row := self._row(target, usable)) is not None]

    def _row(self, target: Target, usable: Usable) -> Json | None:
        if not usable.on(target):
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
            raise UnknownTool(f"there is no tool {tool!r}", hint=did_you_mean(tool, CATALOGUE))
        own, _ = validate(operation, {**arguments, **_selection(operation, target)})
        gateway, principal = self._gateway, self._principal
        targets = gateway.chosen(principal, operation, (target,), gateway.registry)
        if len(targets) > MOST_EXPLAINED:
            said = f"{len(targets)} targets are too many to explain at once: {MOST_EXPLAINED} at most"
            raise InvalidArguments(said, hint="Name one target, or those that matter.")
        decisions = gateway.explain(principal, operation.meant(own), own, targets)
        rows = []
        for chosen, decision in zip(targets, decisions, strict=True):
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

    async def jobs(self, state: str | None) -> list[Json]:
        return await self._jobs.all(state)

    async def job(self, id: str) -> Json:
        return await self._jobs.one(id)

    async def job_output(self, id: str, target: str | None) -> Json:
        return await self._jobs.output(id, target)

    async def cancel_job(self, id: str) -> Json:
        return await self._jobs.cancel(id)

    @property
    def _jobs(self) -> SeenJobs:
        return SeenJobs(self._gateway.jobs, self._principal, self._gateway.redactor)

    def health(self) -> Json:
        gateway = self._gateway
        registry, frozen = gateway.registry, gateway.freezer.now()
        stopped = {"frozen": f"{frozen.parts} by {frozen.by}; systemmanager thaw ends it"} if frozen.anything else {}
        # In quotes, an id such as `db-password` is not the name of a secret, and what is wrong is not masked.
        faults = {f"target {id!r}": why for id, why in registry.faults.items()}
        return {
            "version": __version__,
            "targets": len(registry.targets),
            "registry": {"source": registry.source, "version": registry.version},
            "policy": {"source": gateway.policy.source, "version": gateway.policy.version},
            "problems": {**stopped, **gateway.degraded, **faults},
        }


def _selection(operation: Operation, target: str) -> dict[str, Any]:
    return {} if operation.selection == "none" else {"targets": [target]}
