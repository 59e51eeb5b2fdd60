"""Searching the audit log, newest record first."""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from systemmanager.audit.record import PHASES, format_of, parsed, timestamp
from systemmanager.audit.segments import lines_backwards
from systemmanager.errors import InvalidArguments

OLDER_IN_A_ROW = 1000
"""So many records before `since` end a search: a clock that was set back leaves a few of them among later ones."""


def query(
    path: Path,
    *,
    call_id: str | None = None,
    tool: str | None = None,
    target: str | None = None,
    subject: str | None = None,
    phase: str | None = None,
    since: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Records that match every given filter, newest first; a line that is no record comes as `{"unreadable": ...}`.

    Checkpoints are found when their phase is asked for.

    `since` is an ISO 8601 time, UTC unless it says otherwise.
    Raises `InvalidArguments` for an unknown phase or a time that can't be read, `OSError` for a log that can't be.
    """
    if phase is not None and phase not in PHASES:
        raise InvalidArguments(f"phase: there is no {phase[:40]!r}", hint=f"Phases are {', '.join(PHASES)}.")
    wanted = {"call_id": call_id, "tool": tool, "target": target, "subject": subject, "phase": phase}
    filters = {name: value for name, value in wanted.items() if value is not None}
    # A line that does not hold the text can't hold the value: most lines need not be parsed.
    marks = [json.dumps(value).encode() for value in filters.values()]
    earliest, older = _instant(since), 0
    for line in lines_backwards(path):
        if not all(mark in line for mark in marks):
            continue
        record = parsed(line) or {"unreadable": line[:200].decode("utf-8", "replace")}
        if earliest is not None and str(record.get("time", "~")) < earliest:
            older += 1
            if older >= OLDER_IN_A_ROW:
                return
        elif phase is None and record.get("phase") == "checkpoint":
            continue
        elif all(record.get(name) == value for name, value in filters.items()):
            older = 0
            yield record


def _instant(since: str | None) -> str | None:
    """A time as the log writes it."""
    if since is None:
        return None
    try:
        given = datetime.fromisoformat(since)
        moment = given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        hint = "Write it like 2026-01-31 or 2026-01-31T08:00."
        raise InvalidArguments(f"since: {since[:40]!r} is no time", hint=hint) from error
    return timestamp(moment.timestamp())


def newest_format(path: Path) -> int:
    """The format that the newest checkpoint of a log names; 1 where there is none that can be read."""
    with suppress(OSError):
        for line in lines_backwards(path):
            if b'"phase":"checkpoint"' in line and (record := parsed(line)) is not None:
                return format_of(record)
    return 1
