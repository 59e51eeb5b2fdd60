"""JSON Schemas as short as they can be: every token of them is read by every model in every session.

What the gateway checks anyway and a model does not need (lengths, patterns, titles, which fields are sure to be there)
is left out; bounds of numbers, choices and descriptions of arguments stay.
"""

from typing import Any

from pydantic import BaseModel

from systemmanager.together import schema_of

_NOT_SAID = frozenset({"title", "pattern", "minLength", "maxLength", "minItems", "maxItems", "additionalProperties"})
_NOT_SAID_OF_ANSWERS = _NOT_SAID | {"description", "default", "required", "minimum", "maximum", "enum"}


def input_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a call's arguments."""
    return _short(model.model_json_schema(mode="validation"), _NOT_SAID)


def output_schema(result: type[BaseModel]) -> dict[str, Any]:
    """The schema of a Reply whose `data` is `result`; a dry run's preview and a cut answer fit it too."""
    data = _short(result.model_json_schema(mode="serialization"), _NOT_SAID_OF_ANSWERS)
    item = {"properties": {"target": {"type": "string"}, "data": data}}
    properties: dict[str, Any] = {"results": {"type": "array", "items": item}}
    if (whole := schema_of(result)) is not None:
        properties["across"] = _short(whole.model_json_schema(mode="serialization"), _NOT_SAID_OF_ANSWERS)
    return {"type": "object", "properties": properties}


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
            if key not in left_out and not (key == "default" and value is None)
        }
        return _without_null(kept if node is schema else _without_type(kept))

    shortened: dict[str, Any] = walk(schema)
    return shortened


def _without_type(node: dict[str, Any]) -> dict[str, Any]:
    """Properties mean an object, and choices their own type."""
    return {key: node[key] for key in node if key != "type"} if node.keys() & {"properties", "enum"} else node


def _without_null(node: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" not in node:
        return node
    branches = [branch for branch in node["anyOf"] if branch != {"type": "null"}]
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    return {**branches[0], **rest} if len(branches) == 1 else {"anyOf": branches, **rest}
