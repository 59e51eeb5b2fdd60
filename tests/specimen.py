"""Example values of any result model, so that every tool's answer can be checked against its declared schema."""

import types
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, create_model

from systemmanager.operation import Operation, Risk, demand
from systemmanager.ports import Result

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
SIMPLE: dict[Any, Any] = {
    datetime: NOON,
    date: NOON.date(),
    str: "text",
    int: 1,
    float: 1.5,
    bool: True,
    Any: "anything",
    bytes: b"x",
    object: "anything",
}


def specimen(annotation: Any, *, full: bool) -> Any:
    """A value of a type; with `full` every optional field is there, otherwise none is."""
    if annotation in SIMPLE:
        return SIMPLE[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return specimen(arguments[0], full=full)
    if origin is Literal:
        return arguments[0]
    if origin in (Union, types.UnionType):
        return specimen(next(one for one in arguments if one is not type(None)), full=full)
    if origin in (list, tuple, set, frozenset) or str(origin).startswith("<class 'collections.abc.Seq"):
        return [specimen(arguments[0], full=full)]
    if origin is not None:
        return {"key": specimen(arguments[1], full=full)}
    if annotation in (dict, list):
        return annotation()
    if issubclass(annotation, Enum):
        return next(iter(annotation))
    assert issubclass(annotation, BaseModel), annotation
    return annotation.model_construct(
        **{
            name: specimen(field.annotation, full=full)
            for name, field in annotation.model_fields.items()
            if full or field.is_required()
        }
    )


def stand_in(operation: Operation, answer: Callable[[], Any]) -> Operation:
    """The operation with its name and result as declared, but no parameters of its own, and an answer that is given.

    Everybody may use it; it counts as a change, so that it takes `dry_run`.
    """

    async def function(port: Any) -> Result:
        made: Result = answer()
        return made

    return replace(
        operation,
        function=function,
        without_targets=function if operation.without_targets else None,
        arguments=create_model(f"{operation.name}_arguments", __base__=_Empty),
        access=demand("system:admin", "system:admin", Risk.LOW),
        by=None,
        compares=False,
        cases={},
        roles={},
        plan=None,
    )


class _Empty(BaseModel):
    model_config = {"extra": "forbid", "frozen": True}
