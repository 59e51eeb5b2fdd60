"""What a log says about speed: slow answers, pauses, queues and pools that are full."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from systemmanager.diagnosis.traces import Event

SLOW = 1.0
"""Seconds from which one operation is slow."""

MOST_LINES = 10

_TOOK = re.compile(
    r"\b(?:took|duration|elapsed|latency|response_?time|request_?time|completed in|finished in|time)\"?[=: ]{1,3}\"?"
    r"(\d{1,9}(?:\.\d{1,6})?) ?(ms|s|sec|seconds|milliseconds|us|µs)\b",
    re.IGNORECASE,
)
_UNITS = {"ms": 1e-3, "milliseconds": 1e-3, "us": 1e-6, "µs": 1e-6}


@dataclass(frozen=True, slots=True)
class Kind:
    code: str
    sentence: str
    advice: str
    words: re.Pattern[str] | None = None
    confidence: float = 0.8


def _kind(code: str, sentence: str, advice: str, words: str | None = None, confidence: float = 0.8) -> Kind:
    return Kind(code, sentence, advice, re.compile(words, re.IGNORECASE) if words else None, confidence)


KINDS = (
    _kind("slow", "Operations take a second or more.", "Look at what is slowest first: queries, disks, remote calls."),
    _kind(
        "slow_queries", "The database reports slow queries.", "Explain the query, and add the index that it lacks.",
        r"slow (?:query|log|operation|request)|duration: \d{4,}\.\d+ ms|long.running quer", 0.85,
    ),
    _kind(
        "pauses", "Collecting garbage or a checkpoint stops it for a while.",
        "Give it more memory, or tune the collector or the checkpoints.",
        r"\b(?:full gc|gc overhead|stop.the.world|gc pause|pause (?:young|full|remark))|checkpoints are occurring too"
        r"|asynchronous AOF fsync is taking too long", 0.75,
    ),
    _kind(
        "exhausted", "A pool, a queue or a limit of connections is full.",
        "Raise the limit after finding what holds so much: slow work, or connections that are not given back.",
        r"pool (?:is )?(?:exhausted|full|timeout)|too many connections|remaining connection slots|queue (?:is )?full"
        r"|worker_connections are not enough|max_children setting|listen queue|backpressure|QueuePool limit", 0.88,
    ),
    _kind(
        "timeouts", "What it waits for comes too late.", "See whether the other side is overloaded.",
        r"timed? ?out\b|deadline exceeded|\bETIMEDOUT\b", 0.7,
    ),
    _kind(
        "overload", "The machine or the program is overloaded.", "Look at load, memory and disks of the target.",
        r"high (?:cpu|memory|load)\b|load average.{0,20}(?:exceed|high)|memory (?:usage|pressure).{0,20}(?:9\d|100) ?%"
        r"|can't keep up|falling behind|hung_task|blocked for more than \d+ seconds", 0.75,
    ),
)  # fmt: skip


@dataclass(slots=True)
class Issue:
    kind: Kind
    count: int = 0
    worst: float | None = None
    lines: list[int] = field(default_factory=list)


def issues(events: Sequence[Event]) -> list[Issue]:
    """What is slow or full, the most frequent first."""
    found: dict[str, Issue] = {}
    for event in events:
        telling = event.telling
        for kind in KINDS:
            seconds = _seconds(event.message) if kind.words is None else None
            if kind.words is not None and not kind.words.search(telling):
                continue
            if kind.words is None and (seconds is None or seconds < SLOW):
                continue
            issue = found.setdefault(kind.code, Issue(kind))
            issue.count += 1
            issue.worst = max(issue.worst or 0.0, seconds) if seconds is not None else issue.worst
            if len(issue.lines) < MOST_LINES:
                issue.lines.append(event.first.number)
    return sorted(found.values(), key=lambda one: -one.count)


def _seconds(message: str) -> float | None:
    found = _TOOK.search(message)
    return None if found is None else float(found[1]) * _UNITS.get(found[2].lower(), 1.0)
