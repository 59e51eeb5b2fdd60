"""One diagnosis: of a log, what is known beside it, and what its neighbours say."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from systemmanager.diagnosis.facts import Facts
from systemmanager.diagnosis.lines import ERROR, SEVERITIES, WARNING, Line, read
from systemmanager.diagnosis.performance import Issue, issues
from systemmanager.diagnosis.templates import Templates
from systemmanager.diagnosis.traces import Event, fold
from systemmanager.diagnosis.weigh import Found, likely

MOST_GROUPS = 20
MOST_LINES = 12
MOST_MOMENTS = 20
MOST_SAMPLE = 500
_RESTING = frozenset({"connection_refused", "dependency_not_ready", "dns", "timed_out", "unreachable"})
"""Causes that may rest on another container's."""

_NUMBERS = re.compile(r"\d+")
"""In these alone the same error differs from time to time."""


@dataclass(frozen=True, slots=True)
class Log:
    """A log and what is known of the program that wrote it. `stamped`: each line begins with the engine's time."""

    name: str
    lines: tuple[Line, ...]
    facts: Facts = field(default_factory=Facts)

    @classmethod
    def of(cls, name: str, text: str, until: float, facts: Facts | None = None, *, stamped: bool = False) -> "Log":
        return cls(name, tuple(read(text, until, stamped=stamped)), facts or Facts())


@dataclass(slots=True)
class Group:
    """Errors that differ in their values alone."""

    severity: int
    template: str
    sample: str
    language: str | None
    count: int = 0
    first_seen: float | None = None
    last_seen: float | None = None
    lines: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Moment:
    """What happened when, and where: in a log's line, or to a container."""

    time: float
    source: str
    text: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another container, and the likeliest cause of its trouble."""

    name: str
    facts: Facts
    cause: Found | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    log: Log
    causes: list[Found]
    groups: list[Group]
    issues: list[Issue]
    neighbours: list[Neighbour]
    timeline: list[Moment]
    levels: dict[str, int]
    templates: int
    traces: int
    errors_in_all: int

    @property
    def cause(self) -> Found | None:
        return self.causes[0] if self.causes else None

    @property
    def rests_on(self) -> Neighbour | None:
        """The neighbour whose trouble explains this one's."""
        if self.cause is None or self.cause.cause.code not in _RESTING:
            return None
        troubled = [one for one in self.neighbours if one.cause is not None or one.facts.running is False]
        named = [one for one in troubled if self.cause.what and one.name and _mentions(self.cause.what, one.name)]
        return next(iter(named or troubled), None)

    @property
    def span(self) -> tuple[float, float] | None:
        times = [line.time for line in self.log.lines if line.time is not None]
        return (min(times), max(times)) if times else None


def _mentions(what: str, name: str) -> bool:
    """Whether an address names a container: by its name, or the service that Compose put into it."""
    host = what.rpartition("/")[2].partition(":")[0].lower()
    return bool(host) and (host == name.lower() or host in name.lower().replace("_", "-").split("-"))


def diagnose(log: Log, neighbours: Iterable[Log] = (), question: str = "") -> Diagnosis:
    """Everything that can be said about one log."""
    events = fold(log.lines)
    groups, templates = _groups(events)
    around = [(other, fold(other.lines)) for other in neighbours]
    beside = [
        Neighbour(other.name, other.facts, next(iter(likely(found, other.facts)), None)) for other, found in around
    ]
    return Diagnosis(
        log=log,
        causes=likely(events, log.facts, question),
        groups=groups[:MOST_GROUPS],
        issues=issues(events),
        neighbours=beside,
        timeline=_timeline([(log, events), *around]),
        levels=dict(Counter(SEVERITIES.get(event.severity, "info") for event in events)),
        templates=templates,
        traces=sum(event.language is not None for event in events),
        errors_in_all=sum(group.count for group in groups),
    )


def _groups(events: Sequence[Event]) -> tuple[list[Group], int]:
    """Warnings and worse, by template, the worst first; and how many templates there are in all."""
    mined = Templates()
    placed = [(event, mined.add(event.message)) for event in events]
    groups: dict[int, Group] = {}
    for event, template in placed:
        if event.severity < WARNING:
            continue
        key = id(template)
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(event.severity, template.text, event.message[:MOST_SAMPLE], event.language)
        group.severity = max(group.severity, event.severity)
        group.count += 1
        if event.first.time is not None:
            group.first_seen = event.first.time if group.first_seen is None else min(group.first_seen, event.first.time)
            group.last_seen = event.first.time if group.last_seen is None else max(group.last_seen, event.first.time)
        if len(group.lines) < MOST_LINES:
            group.lines.append(event.first.number)
    ranked = sorted(groups.values(), key=lambda group: (-group.severity, -group.count, group.lines[0]))
    return ranked, mined.groups


def _timeline(logs: Sequence[tuple[Log, Sequence[Event]]]) -> list[Moment]:
    """Starts, ends and the first of each error, of all containers in one order; the last ones where they are many."""
    moments: list[Moment] = []
    for log, events in logs:
        facts, seen = log.facts, set[str]()
        if facts.started is not None:
            moments.append(Moment(facts.started, log.name, "started"))
        if facts.finished is not None and not facts.running:
            code = "" if facts.exit_code is None else f" with exit status {facts.exit_code}"
            killed = ", out of memory" if facts.oom_killed else ""
            moments.append(Moment(facts.finished, log.name, f"ended{code}{killed}"))
        for event in events:
            brief = event.message[:160]
            alike = _NUMBERS.sub("0", brief)
            if event.severity >= ERROR and event.first.time is not None and alike not in seen:
                seen.add(alike)
                moments.append(Moment(event.first.time, log.name, brief, event.first.number))
    return sorted(moments, key=lambda moment: moment.time)[-MOST_MOMENTS:]
