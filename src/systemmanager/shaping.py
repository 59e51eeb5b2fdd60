"""The Reply: one envelope for one target or many, bounded, as structured data and as the text that a model reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from systemmanager.errors import GatewayError

MAX_REPLY_BYTES = 256 * 1024
"""Clients refuse events over 1 MiB, and the answer travels twice: as text and as structured content."""

_LEAST = 2048


@dataclass(slots=True)
class TargetReply:
    """One target's part: `data` or `error`, both plain JSON values."""

    target: str
    data: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    elapsed_ms: int = 0
    untrusted: bool = False

    def as_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = {"target": self.target, "ok": self.error is None}
        if self.error is None:
            result["data"] = self.data
            if self.untrusted:
                result["untrusted"] = True
        else:
            result["error"] = self.error
        result["elapsed_ms"] = self.elapsed_ms
        return result


@dataclass(slots=True)
class Reply:
    """The answer to one call. `error` is a fault of the call as a whole; then nothing ran and `results` is empty."""

    call_id: str
    tool: str
    results: list[TargetReply] = field(default_factory=list)
    error: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and all(result.error is None for result in self.results)

    @property
    def failed(self) -> bool:
        """Nothing of the call succeeded."""
        return self.error is not None or all(result.error is not None for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """The structured answer."""
        body: dict[str, Any] = {"call_id": self.call_id, "tool": self.tool, "ok": self.ok}
        if self.error is not None:
            return {**body, "error": self.error}
        failures = sum(result.error is not None for result in self.results)
        body["results"] = [result.as_dict() for result in self.results]
        body["summary"] = {
            "targets": len(self.results),
            "succeeded": len(self.results) - failures,
            "failed": failures,
        }
        return body

    def text(self, format: str = "json") -> str:
        """What a model reads: the structured answer without what says nothing, as compact JSON or as TOON.

        TOON is the caller's wish, not a promise: where it would be longer, the text is JSON and says so.
        """
        body: dict[str, Any] = {"call_id": self.call_id}
        if self.error is not None:
            body["error"] = self.error
        else:
            body["results"] = [_brief(result) for result in self.results]
            if len(self.results) > 1 and not self.ok:
                body["summary"] = self.as_dict()["summary"]
        compact = compact_json(body)
        if format != "toon":
            return compact
        toon = _toon(body)
        if toon is not None and len(toon) <= len(compact):
            return toon
        return compact_json({"format": "json, which is shorter here than TOON", **body})


def _brief(result: TargetReply) -> dict[str, Any]:
    brief: dict[str, Any] = {"target": result.target}
    if result.error is not None:
        return {**brief, "error": result.error}
    if result.untrusted:
        brief["untrusted"] = True
    return {**brief, "data": result.data}


def _toon(body: dict[str, Any]) -> str | None:
    from toon_format import encode

    try:
        return encode(body)
    except (ValueError, TypeError):
        return None


def compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def fault(call_id: str, tool: str, error: GatewayError) -> Reply:
    """The reply to a call that is refused as a whole."""
    return Reply(call_id, tool, error=error.as_dict())


def clip(value: Any, length: int = 2048) -> Any:
    """A JSON value with long texts and long lists cut, for the audit log: nobody can flood a line."""
    if isinstance(value, str):
        return value if len(value) <= length else f"{value[:length]}... ({len(value)} characters)"
    if isinstance(value, dict):
        return {name[:100]: clip(child, length) for name, child in list(value.items())[:64]}
    if isinstance(value, list | tuple):
        kept = [clip(child, length) for child in value[:64]]
        return kept if len(value) <= 64 else [*kept, f"... ({len(value)} items)"]
    return value


def page_start(model: type[BaseModel], arguments: Mapping[str, Any]) -> int | None:
    """Where the asked page of a list begins; None for an operation that has no `cursor`."""
    return int(arguments.get("cursor") or 0) if "cursor" in model.model_fields else None


def size_of(value: Any) -> int:
    """Bytes of a JSON value on the wire."""
    return len(compact_json(value).encode())


def bound(reply: Reply, start: int | None = None) -> Reply:
    """Cut what is too long for a client, list ends and text ends first; what is cut says so. Changes `reply`.

    `start` is where this page of a list began, for operations that take a `cursor`; then a cut names where to go on.
    """
    share = max(_LEAST, MAX_REPLY_BYTES // max(1, len(reply.results)))
    for result in reply.results:
        if result.data is not None:
            result.data = _cut(result.data, share, start)
    return reply


def _cut(data: dict[str, Any], limit: int, start: int | None) -> dict[str, Any]:
    while (size := size_of(data)) > limit:
        name, value = max(data.items(), key=lambda item: size_of(item[1]))
        excess = size - limit
        if isinstance(value, list) and len(value) > 1:
            keep = max(1, min(len(value) - 1, int(len(value) * (1 - excess / size_of(value)))))
            data = {**data, name: value[:keep], "truncated": True}
            if start is not None:
                data["next"] = str(start + keep)
        elif isinstance(value, str) and len(value) > 64:
            keep = max(32, min(len(value) - 1, int(len(value) * (1 - excess / size_of(value))) - 16))
            data = {**data, name: value[:keep], "truncated": True}
        elif isinstance(value, dict) and len(value) > 0:
            inner = _cut(value, max(32, size_of(value) - excess - 32), None)
            if size_of(inner) >= size_of(value):
                return {"truncated": True, "note": "too large to answer; ask for less"}
            data = {**data, name: inner}
        else:
            return {"truncated": True, "note": "too large to answer; ask for less"}
    return data
