"""What passes between the desk and those who answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from systemmanager.approvals.store import Asked


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
