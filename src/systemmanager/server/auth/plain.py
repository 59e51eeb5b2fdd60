"""JSON that means one thing only, from whoever sends it."""

import json
from typing import Any, NoReturn


def plain_object(data: bytes | str) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN or infinities. Raises `ValueError`."""
    try:
        value = json.loads(data, object_pairs_hook=_once, parse_constant=_never)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("does not hold an object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("has a duplicate key")
    return dict(pairs)


def _never(constant: str) -> NoReturn:
    raise ValueError(f"holds {constant}")
