"""The Reply: one envelope for one target or many, bounded, as structured data and as the text that a model reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from pydantic import BaseModel

from systemmanager.fencing import LONGEST_END, end_of
from systemmanager.grouping import NOTE, grouped

MAX_REPLY_BYTES = 256 * 1024
"""Clients refuse events over 1 MiB, and the answer travels twice: as text and as structured content."""

_ENVELOPE = 512


@dataclass(slots=True)
class TargetReply:
    """One target's part: `data` or `error`, both plain JSON values. `wave` is the one that it was in."""

    target: str
    data: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    elapsed_ms: int = 0
    untrusted: bool = False
    wave: int | None = None

    def as_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = {"target": self.target, "ok": self.error is None}
        if self.error is None:
            result["data"] = self.data
        else:
            result["error"] = self.error
        if self.untrusted:
            result["untrusted"] = True
        result["elapsed_ms"] = self.elapsed_ms
        if self.wave is not None:
            result["wave"] = self.wave
        return result

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "TargetReply":
        """From what `as_dict` gave."""
        optional = {name: kept[name] for name in ("data", "error", "untrusted", "wave") if name in kept}
        return cls(kept["target"], elapsed_ms=kept["elapsed_ms"], **optional)


@dataclass(slots=True)
class Reply:
    """The answer to one call. `error` is a fault of the call as a whole; then nothing ran and `results` is empty.

    `job`: the call goes on, and these are the results so far. `across` is what holds for all targets together.
    """

    call_id: str
    tool: str
    results: list[TargetReply] = field(default_factory=list)
    error: dict[str, Any] | None = None
    omitted: list[TargetReply] = field(default_factory=list)
    job: dict[str, Any] | None = None
    across: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and all(result.error is None for result in (*self.results, *self.omitted))

    @property
    def failed(self) -> bool:
        """Nothing of the call succeeded."""
        if self.job is not None:
            return False
        return self.error is not None or all(result.error is not None for result in (*self.results, *self.omitted))

    def as_dict(self) -> dict[str, Any]:
        """The structured answer."""
        body: dict[str, Any] = {"call_id": self.call_id, "tool": self.tool, "ok": self.ok}
        if self.error is not None:
            return {**body, "error": self.error}
        body |= self._about()
        body["results"] = [result.as_dict() for result in self.results]
        body["summary"] = self.summary()
        return body

    def _about(self) -> dict[str, Any]:
        """What is said of all targets together."""
        return {name: value for name, value in (("job", self.job), ("across", self.across)) if value is not None}

    def summary(self) -> dict[str, Any]:
        everything = (*self.results, *self.omitted)
        failures = sum(result.error is not None for result in everything)
        summary: dict[str, Any] = {
            "targets": len(everything), "succeeded": len(everything) - failures, "failed": failures,
        }  # fmt: skip
        if waves := _waves(everything):
            summary["waves"] = waves
        if self.omitted:
            summary |= {"omitted": len(self.omitted), "note": "too many targets for one answer; ask for fewer"}
        return summary

    def text(self, format: str = "json") -> str:
        """What a model reads: the structured answer without what says nothing, as compact JSON or as TOON.

        TOON is the caller's wish, not a promise: where it would be longer, the text is JSON and says so.
        """
        body: dict[str, Any] = {"call_id": self.call_id}
        if self.error is not None:
            body["error"] = self.error
        else:
            body |= self._about()
            body |= _results(self.results)
            if self.omitted or (len(self.results) > 1 and (not self.ok or self.results[0].wave)):
                body["summary"] = self.summary()
        compact = compact_json(body)
        if format != "toon":
            return compact
        toon = _toon(body)
        if toon is not None and len(toon) <= len(compact):
            return toon
        return compact_json({"format": "json, which is shorter here than TOON", **body})


def _results(results: Sequence[TargetReply]) -> dict[str, Any]:
    """The results as a model reads them: each by itself, or in groups where that is shorter."""
    plain: dict[str, Any] = {"results": [_brief(result) for result in results]}
    found = grouped(results)
    if found is None:
        return plain
    together: dict[str, Any] = {"note": NOTE, "common": found.common} if found.common else {}
    together["results"] = [group.as_dict() for group in found.groups]
    return together if len(compact_json(together)) < len(compact_json(plain)) else plain


def _waves(results: Sequence[TargetReply]) -> list[dict[str, int]]:
    """How each wave went."""
    found: dict[int, dict[str, int]] = {}
    for one in results:
        if one.wave is not None:
            wave = found.setdefault(one.wave, {"wave": one.wave, "targets": 0, "failed": 0})
            wave["targets"] += 1
            wave["failed"] += one.error is not None or "unhealthy" in (one.data or {})
    return list(found.values())


def _brief(result: TargetReply) -> dict[str, Any]:
    brief: dict[str, Any] = {"target": result.target}
    if result.untrusted:
        brief["untrusted"] = True
    if result.error is not None:
        return {**brief, "error": result.error}
    return {**brief, "data": _of_job(result.data) if result.data and "job_id" in result.data else result.data}


def job_replies(data: Mapping[str, Any]) -> dict[str, list[TargetReply]]:
    """The results in what is told of a job; those that were cut to something else are left out."""
    lists = {name: data[name] for name in ("results", "untrusted_results") if data.get(name)}
    whole = {name for name, rows in lists.items() if all(one.keys() >= {"target", "ok", "elapsed_ms"} for one in rows)}
    return {name: [TargetReply.of(one) for one in lists[name]] for name in whole}


def _of_job(data: dict[str, Any]) -> dict[str, Any]:
    """What is told of a job, with its results as those of a call on as many targets."""
    told = {name: _results(replies) for name, replies in job_replies(data).items()}
    return data | {name: found if "common" in found else found["results"] for name, found in told.items()}


def _toon(body: dict[str, Any]) -> str | None:
    from toon_format import encode

    try:
        return encode(body)
    except (ValueError, TypeError):
        return None


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def compact_json(value: Any) -> str:
    return _encode(value)


def fault(call_id: str, tool: str, error: dict[str, Any]) -> Reply:
    """The reply to a call that is refused as a whole."""
    return Reply(call_id, tool, error=error)


def clip(value: Any, budget: int = 8192, longest: int = 2048, depth: int = 8) -> Any:
    """A JSON value with about `budget` characters, texts of `longest`, and `depth` levels: nobody floods a line."""
    return _Clip(budget, longest).value(value, depth)


class _Clip:
    """Cuts what no longer fits; what is cut says how much there was."""

    def __init__(self, budget: int, longest: int) -> None:
        self._left, self._longest = budget, longest

    def value(self, value: Any, depth: int) -> Any:
        self._left -= 4
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict | list | tuple):
            if depth == 0 or self._left <= 0:
                return f"... ({len(value)} items)" if value else value
            return self._object(value, depth - 1) if isinstance(value, dict) else self._list(value, depth - 1)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and -(2**63) <= value < 2**64:
            return value
        if isinstance(value, float) and isfinite(value):
            return value
        return self._text(str(value) if not isinstance(value, int) else "a number of many digits")

    def _text(self, text: str) -> str:
        length = max(16, min(len(text), self._left, self._longest))
        self._left -= min(len(text), length)
        return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"

    def _object(self, values: dict[Any, Any], depth: int) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, value in values.items():
            if self._left <= 0:
                kept["..."] = f"{len(values)} items"
                break
            kept[self._text(str(name)[:100])] = self.value(value, depth)
        return kept

    def _list(self, values: Sequence[Any], depth: int) -> list[Any]:
        kept: list[Any] = []
        for value in values:
            if self._left <= 0:
                return [*kept, f"... ({len(values)} items)"]
            kept.append(self.value(value, depth))
        return kept


def page_start(model: type[BaseModel], arguments: Mapping[str, Any]) -> int | None:
    """Where the asked page of a list begins; None for an operation that has no `cursor`."""
    return int(arguments.get("cursor") or 0) if "cursor" in model.model_fields else None


def size_of(value: Any) -> int:
    """Bytes of a JSON value on the wire."""
    return len(compact_json(value).encode("utf-8", "surrogatepass"))


def bound(reply: Reply, start: int | None = None, most: int = MAX_REPLY_BYTES) -> Reply:
    """Cut what is too long for a client, list ends and text ends first; what is cut says so. Changes `reply`.

    `start` is where this page of a list began, for operations that take a `cursor`; then a cut names where to go on.
    `most` in bytes.
    What small results leave of their share goes to the large ones.
    """
    if size_of([result.as_dict() for result in reply.results]) <= most - _ENVELOPE:
        return reply
    sizes = [size_of(result.as_dict()) + 1 for result in reply.results]
    left, waiting = most - _ENVELOPE, len(sizes)
    for size, result in sorted(zip(sizes, reply.results, strict=True), key=lambda pair: pair[0]):
        share = max(left // waiting, 0)
        if size > share:
            size = _shorten(result, share, start)
        left, waiting = left - size, waiting - 1
    while left < 0:
        reply.omitted.append(dropped := reply.results.pop())
        left += size_of(dropped.as_dict()) + 1
    return reply


_MARKS = 48
"""Bytes of the fields that say that something was cut, and of the braces."""

_TOO_LARGE = "too large to answer; ask for less, or for fewer targets"


def _shorten(result: TargetReply, share: int, start: int | None) -> int:
    """Cut one target's part to about `share` bytes; answers the bytes it has then."""
    around = size_of(result.as_dict())
    if result.data is not None:
        around -= size_of(result.data)
        result.data = _cut(result.data, max(share - around, 48), start)
    elif result.error is not None:
        message = str(result.error["message"])
        kept = message[: max(80, len(message) - (around - share) - 16)]
        result.error = {**{key: result.error[key] for key in ("code", "retryable") if key in result.error}}
        result.error["message"] = kept if kept == message else f"{kept}..."
    return size_of(result.as_dict()) + 1


def _cut(data: dict[str, Any], limit: int, start: int | None) -> dict[str, Any]:
    """`data` in at most `limit` bytes: its largest fields are shortened, one after the other."""
    sizes = {name: size_of(value) + size_of(name) + 2 for name, value in data.items()}
    smallest_first = sorted(sizes, key=sizes.__getitem__)
    kept, total = dict(data), sum(sizes.values()) + _MARKS
    while total > limit:
        name = smallest_first.pop() if smallest_first else None
        if name is None or sizes[name] <= 40:
            return {"truncated": True, "note": _TOO_LARGE}
        around = size_of(name) + 2
        shorter = _shorter(kept[name], max(limit - (total - sizes[name]) - around, 0))
        total -= sizes[name]
        if shorter is None:
            kept.pop(name)
        else:
            kept[name] = shorter
            total += size_of(shorter) + around
        kept["truncated"] = True
        if start is None:
            kept.pop("next", None)  # it leads on from the end of what was cut
        elif isinstance(shorter, list):
            kept["next"] = str(start + max(1, len(shorter)))
    return kept


def _shorter(value: Any, room: int) -> Any:
    """The beginning of a list, text or object that fits into `room` bytes; None when there is nothing to keep."""
    if isinstance(value, list):
        count, used = 0, 2
        for item in value:
            used += size_of(item) + 1
            if used > room:
                break
            count += 1
        # At least the beginning of one, so that `next` leads on.
        first = None if count or not value else _shorter(value[0], room - 2)
        return value[:count] if first is None else [first]
    if isinstance(value, str):
        return _beginning(value, room) if room > 16 else None
    if isinstance(value, dict) and room > 64:
        return _cut(value, room, None)
    return None


def _beginning(text: str, room: int) -> str | None:
    """A cut text; one in a fence keeps the mark that ends it, or goes whole."""
    end = end_of(text)
    if not end:
        return json_prefix(text, room)
    left = room - size_of(end)
    return json_prefix(text.removesuffix(end), left) + end if left > 2 * LONGEST_END else None


def json_prefix(text: str, room: int) -> str:
    """The longest beginning of a text that takes at most `room` bytes as JSON."""
    kept = text[:room]
    while (over := size_of(kept) - room) > 0:
        # A character is at most six bytes on the wire: `\\u0000`.
        kept = kept[: min(len(kept) - 1, len(kept) - over // 6)]
    return kept
