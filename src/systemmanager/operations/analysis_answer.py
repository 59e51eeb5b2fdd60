"""The answer of `analyze_container_logs`: a diagnosis as a result model."""

from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from systemmanager.diagnosis.diagnose import Diagnosis, Group, Neighbour
from systemmanager.diagnosis.lines import LONGEST, SEVERITIES
from systemmanager.diagnosis.weigh import Found
from systemmanager.ports import FreeText, Result


class ErrorGroup(Result):
    severity: str
    count: int
    first_seen: str | None = None
    last_seen: str | None = None
    lines: list[int] = Field(description="The first of them.")
    template: FreeText
    sample: FreeText | None = None
    trace: str | None = Field(default=None, description="The language of a stack trace.")


class LikelyCause(Result):
    cause: str = Field(description="Code, such as port_conflict.")
    sentence: str
    what: FreeText | None = Field(default=None, description="What it is about, as the log says.")
    confidence: float
    lines: list[int]
    facts: list[str] | None = Field(default=None, description="Of its state.")


class OtherCause(Result):
    cause: str
    confidence: float
    lines: list[int]


class PerformanceIssue(Result):
    issue: str
    sentence: str
    count: int
    worst: float | None = Field(default=None, description="Seconds.")
    confidence: float
    lines: list[int]


class Related(Result):
    container: str
    state: str | None = None
    cause: str | None = None
    confidence: float | None = None
    lines: list[int] | None = None


class TimelineRow(Result):
    time: str
    source: str
    text: FreeText
    line: int | None = None


class LogAnalysis(Result):
    """Lines count from 1 in what was read."""

    source: str
    summary: str
    root_cause: LikelyCause | None = None
    other_causes: list[OtherCause] | None = None
    errors: list[ErrorGroup]
    performance_issues: list[PerformanceIssue] | None = None
    recommendations: list[str]
    state: dict[str, Any] | None = None
    related: list[Related] | None = Field(default=None, description="Containers of its project or network.")
    timeline: list[TimelineRow] | None = None
    statistics: dict[str, Any]
    explanation: FreeText | None = None
    ai: str = "not used"


def answer(found: Diagnosis, *, cut: bool) -> LogAnalysis:
    facts = found.log.facts
    return LogAnalysis(
        source=found.log.name,
        summary=summary(found),
        root_cause=None if found.cause is None else _cause(found.cause),
        other_causes=[_other(one) for one in found.causes[1:]] or None,
        errors=[_group(group) for group in found.groups],
        performance_issues=[
            PerformanceIssue(
                issue=one.kind.code,
                sentence=one.kind.sentence,
                count=one.count,
                worst=None if one.worst is None else round(one.worst, 3),
                confidence=one.kind.confidence,
                lines=one.lines,
            )
            for one in found.issues
        ]
        or None,
        recommendations=recommendations(found),
        state=facts.shown() or None,
        related=[_related(one) for one in found.neighbours] or None,
        timeline=[
            TimelineRow(time=moment(one.time), source=one.source, text=one.text, line=one.line)
            for one in found.timeline
        ]
        or None,
        statistics=_statistics(found, cut=cut),
    )


def _statistics(found: Diagnosis, *, cut: bool) -> dict[str, Any]:
    span = found.span
    every = {
        "lines": len(found.log.lines),
        "first": moment(span[0]) if span else None,
        "last": moment(span[1]) if span else None,
        "levels": found.levels,
        "templates": found.templates,
        "traces": found.traces,
        "errors": found.errors_in_all,
        "truncated": cut or None,
        "lines_cut": _cut(found) or None,
    }
    return {name: value for name, value in every.items() if value is not None}


def _cut(found: Diagnosis) -> int:
    """Lines of which only the beginning was read."""
    return sum(len(line.text) >= LONGEST for line in found.log.lines)


def summary(found: Diagnosis) -> str:
    """One or two sentences, in the gateway's own words: nothing of the log stands in them."""
    lines, cause = len(found.log.lines), found.cause
    if cause is None:
        errors = found.errors_in_all
        seen = f"{errors} warnings or errors" if errors else "no warnings and no errors"
        unread = f" Of {count} only the first {LONGEST} characters were read." if (count := _cut(found)) else ""
        return f"No cause of trouble found in {lines} lines ({seen}).{unread}"
    shown = map(str, cause.lines if len(cause.lines) <= 6 else (*cause.lines[:3], "...", *cause.lines[-3:]))
    where = f"lines {', '.join(shown)}" if cause.lines else "its state"
    text = f"{cause.cause.sentence} ({cause.cause.code}, confidence {cause.confidence:g}; {where} of {lines})"
    return f"{text} Another container explains it: see related." if found.rests_on else text


def recommendations(found: Diagnosis) -> list[str]:
    """What helps, for the likeliest cause first."""
    advice = list(found.cause.cause.advice) if found.cause else []
    if (other := found.rests_on) is not None:
        why = f" ({other.cause.cause.code})" if other.cause else ""
        advice.insert(0, f"Look first at the container that it depends on, see related{why}.")
    second = found.causes[1] if len(found.causes) > 1 else None
    if found.cause and second and found.cause.confidence - second.confidence < 0.1:
        advice += second.cause.advice[:1]
    return list(dict.fromkeys([*advice, *(issue.kind.advice for issue in found.issues[:3])]))


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _cause(found: Found) -> LikelyCause:
    return LikelyCause(
        cause=found.cause.code,
        sentence=found.cause.sentence,
        what=found.what,
        confidence=found.confidence,
        lines=list(found.lines),
        facts=list(found.facts) or None,
    )


def _other(found: Found) -> OtherCause:
    return OtherCause(cause=found.cause.code, confidence=found.confidence, lines=list(found.lines))


def _group(group: Group) -> ErrorGroup:
    return ErrorGroup(
        severity=SEVERITIES[group.severity],
        count=group.count,
        first_seen=None if group.first_seen is None else moment(group.first_seen),
        last_seen=None if group.last_seen is None else moment(group.last_seen),
        lines=group.lines,
        template=group.template[:500],
        sample=group.sample if group.sample != group.template else None,
        trace=group.language,
    )


def _related(one: Neighbour) -> Related:
    return Related(
        container=one.name,
        state=one.facts.state,
        cause=one.cause.cause.code if one.cause else None,
        confidence=one.cause.confidence if one.cause else None,
        lines=list(one.cause.lines) if one.cause else None,
    )
