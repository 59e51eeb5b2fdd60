"""JSON Schemas as short as they can be: every token of them is read by every model on every session."""

from typing import Any

from pydantic import BaseModel

_ENVELOPE_ERROR = {"type": "object"}


def input_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a call's arguments, without titles and with references resolved."""
    return _short(model.model_json_schema(mode="validation"), keep_text=True)


def output_schema(result: type[BaseModel]) -> dict[str, Any]:
    """The schema of a Reply whose `data` is `result`."""
    return {
        "type": "object",
        "properties": {
            "call_id": {"type": "string"},
            "ok": {"type": "boolean"},
            "results": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "target": {"type": "string"},
                        "ok": {"type": "boolean"},
                        "data": _or_preview(_short(result.model_json_schema(mode="serialization"), keep_text=False)),
                        "error": {"type": "object"},
                    },
                },
            },
            "error": {"type": "object"},
        },
    }


def _or_preview(schema: dict[str, Any]) -> dict[str, Any]:
    """Data may also be a dry run's preview or be cut, so that no field of it is sure to be there."""
    return {name: value for name, value in schema.items() if name not in ("required", "additionalProperties")}


def _short(schema: dict[str, Any], *, keep_text: bool) -> dict[str, Any]:
    definitions = schema.pop("$defs", {})
    shortened = _walk(schema, definitions, keep_text)
    assert isinstance(shortened, dict)
    return shortened


def _walk(node: Any, definitions: dict[str, Any], keep_text: bool) -> Any:
    if isinstance(node, list):
        return [_walk(child, definitions, keep_text) for child in node]
    if not isinstance(node, dict):
        return node
    if reference := node.get("$ref"):
        node = {**definitions[reference.rpartition("/")[2]], **{key: node[key] for key in node if key != "$ref"}}
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "title" and isinstance(value, str):
            continue
        if key == "description" and isinstance(value, str) and not keep_text:
            continue
        if key == "default" and (value is None or not keep_text):
            continue
        if key == "properties":
            result[key] = {name: _walk(child, definitions, keep_text) for name, child in value.items()}
        elif key in ("required", "additionalProperties") and not keep_text:
            continue
        else:
            result[key] = _walk(value, definitions, keep_text)
    return _without_null(result)


def _without_null(node: dict[str, Any]) -> dict[str, Any]:
    """`T or null` as `T`: absent fields are left out, never sent as null."""
    branches = [branch for branch in node.get("anyOf", ()) if branch != {"type": "null"}]
    if not branches or len(branches) == len(node["anyOf"]):
        return node
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    return {**branches[0], **rest} if len(branches) == 1 else {"anyOf": branches, **rest}
