"""What answers of several targets say together, where their operation knows."""

from typing import Any

from systemmanager.across import Together
from systemmanager.operation import Operation
from systemmanager.shaping import Reply


def together(operation: Operation, reply: Reply) -> Reply:
    """The reply with what holds across its targets, and of each target only what is left to be said then."""
    if not issubclass(operation.result, Together):
        return reply
    answered = {one.target: one for one in reply.results if one.error is None}
    found = {id: operation.result.model_validate(one.data) for id, one in answered.items()}
    if len(found) < 2:
        return reply
    told, whole = operation.result.across(found)
    for id, one in answered.items():
        one.data = told[id].model_dump(mode="json", exclude_none=True)
    reply.across = whole.model_dump(mode="json", exclude_none=True)
    if any(one.untrusted for one in answered.values()):
        reply.across = {"untrusted": True, **reply.across}
    return reply


def schema_of(result: type[Any]) -> type[Any] | None:
    """The model of what holds across targets; None where an operation says nothing of that."""
    return result.Across if issubclass(result, Together) else None
