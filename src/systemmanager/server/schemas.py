"""JSON Schemas as short as they can be: every token of them is read by every model in every session.

What the gateway checks anyway and a model does not need (lengths, patterns, titles, which fields are sure to be there)
is left out; bounds of numbers, choices and descriptions of arguments stay. Of answers the names of fields are said,
down to the rows of a list.
"""

from typing import Any

from pydantic import BaseModel

from systemmanager.arguments import call_model
from systemmanager.operation import Operation
from systemmanager.together import schema_of

_NOT_SAID = frozenset({
    "title", "pattern", "minLength", "maxLength", "minItems", "maxItems", "additionalProperties", "maxProperties",
    "patternProperties",
})  # fmt: skip
_NOT_SAID_OF_ANSWERS = _NOT_SAID | {"description", "default", "required", "minimum", "maximum", "enum"}
_OF_APPROVALS = ("approval_id", "approval_wait")
_DEEPEST = 2
"""Levels of an answer whose fields are named: its own, and those of its rows."""


def input_schema(operation: Operation) -> dict[str, Any]:
    """The schema of a call's arguments. How to use an approval is said where a tool changes something; reading seldom
    needs one, and the refusal then says it."""
    schema = _short(call_model(operation).model_json_schema(mode="validation"), _NOT_SAID)
    if not operation.mutates:
        schema["properties"] = {name: one for name, one in schema["properties"].items() if name not in _OF_APPROVALS}
    return schema


def output_schema(result: type[BaseModel]) -> dict[str, Any]:
    """The schema of a Reply whose `data` is `result`; a dry run's preview and a cut answer fit it too."""
    data = _names(result)
    item = {"properties": {"data": data}}
    properties: dict[str, Any] = {"results": {"type": "array", "items": item}}
    if (whole := schema_of(result)) is not None:
        properties["across"] = _names(whole)
    return {"type": "object", "properties": properties}


def _names(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of an answer: which fields, which of them are lists, and nothing of what is in a single value."""

    def walk(node: dict[str, Any], level: int) -> dict[str, Any]:
        if "properties" in node:
            if level == _DEEPEST:
                return {}
            return {"properties": {name: walk(child, level + 1) for name, child in node["properties"].items()}}
        if node.get("type") == "array":
            items = walk(node.get("items", {}), level)
            return {"type": "array", "items": items} if items else {}
        return {}

    return {"type": "object", **walk(_short(model.model_json_schema(mode="serialization"), _NOT_SAID_OF_ANSWERS), 0)}


def _short(schema: dict[str, Any], left_out: frozenset[str]) -> dict[str, Any]:
    """The schema with references resolved and nulls dropped: absent fields are left out, never sent as null."""
    definitions = schema.pop("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(child) for child in node]
        if not isinstance(node, dict):
            return node
        if reference := node.get("$ref"):
            node = definitions[reference.rpartition("/")[2]] | {key: node[key] for key in node if key != "$ref"}
        kept = {
            key: {name: walk(child) for name, child in value.items()} if key == "properties" else walk(value)
            for key, value in node.items()
            if key not in left_out and not _goes_without_saying(key, value, node)
        }
        return _without_null(kept if node is schema else _without_type(kept))

    shortened: dict[str, Any] = walk(schema)
    return shortened


def _goes_without_saying(key: str, value: Any, node: dict[str, Any]) -> bool:
    """A default of nothing, or of the first choice; that a number is not negative."""
    if key == "default":
        return not value or value == next(iter(node.get("enum", ())), ...)
    return key == "minimum" and value == 0


def _without_type(node: dict[str, Any]) -> dict[str, Any]:
    """Properties mean an object, and choices their own type."""
    return {key: node[key] for key in node if key != "type"} if node.keys() & {"properties", "enum"} else node


def _without_null(node: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" not in node:
        return node
    branches = [branch for branch in node["anyOf"] if branch != {"type": "null"}]
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    lists = [branch for branch in branches if branch.get("type") == "array"]
    if len(branches) == 2 and len(lists) == 1 and lists[0].get("items") in branches:
        return {**lists[0], **rest}  # one or several of a kind: a list says it
    return {**branches[0], **rest} if len(branches) == 1 else {"anyOf": branches, **rest}
