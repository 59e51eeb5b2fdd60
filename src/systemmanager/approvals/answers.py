"""What passes between the desk and those who answer."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from systemmanager.approvals.store import Asked

MOST_BYTES = 16 * 1024
"""Of an answer."""

_APPROVER = re.compile(r"[!-~](?:[ -~]{0,252}[!-~])?")


@dataclass(frozen=True, slots=True)
class Answered:
    """What a channel was told: by whom, and for which digest."""

    person: str
    approved: bool
    digest: str


class NoAnswer(Exception):
    """What came back says neither yes nor no."""


def plain(asked: Asked) -> Mapping[str, Any]:
    """An approval request as JSON values, all of it."""
    return {
        "id": asked.id,
        "state": asked.state,
        "needed": asked.needed,
        "created": asked.created,
        "expires": asked.expires,
        "digest": asked.digest,
        "question": dict(asked.question),
        "answers": [{"person": one.person, "approved": one.approved, "channel": one.channel} for one in asked.answers],
    }


def read(content: bytes, *, id: str | None = None) -> Answered:
    """The answer in a body, for this id when it came by itself. Raises `NoAnswer`. The store judges its digest."""
    try:
        found = json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise NoAnswer("the answer is no plain JSON") from None
    if not isinstance(found, dict) or not isinstance(approved := found.get("approved"), bool):
        raise NoAnswer("`approved` is neither true nor false")
    if not isinstance(echoed := found.get("digest"), str):
        raise NoAnswer("the answer echoes no digest")
    if id is not None and found.get("id") != id:
        raise NoAnswer("the answer is for another id")
    person = found.get("approver")
    if not isinstance(person, str) or not _APPROVER.fullmatch(person) or person.lower().startswith("local:"):
        raise NoAnswer("`approver` names nobody")
    return Answered(person, approved, echoed)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose every name stands once: what stands twice means two things to two readers."""
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a name stands twice")
    return found
