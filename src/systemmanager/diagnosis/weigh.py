"""From signs to causes: what each line and each fact says, weighed by who says it, when, and what came after."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import log2

from systemmanager.diagnosis.causes import BY_CODE, CAUSES
from systemmanager.diagnosis.causes.sign import Cause
from systemmanager.diagnosis.entering import break_in
from systemmanager.diagnosis.facts import Facts
from systemmanager.diagnosis.lines import ERROR, WARNING, Line, telling
from systemmanager.diagnosis.traces import Event

CLAIM = 0.5
"""Confidence below which no cause is claimed."""

MOST_READ = 400_000
"""Characters of different texts in which signs are looked for, the newest first: hostile ones cost 10 ms each."""

SUREST = 0.98
MOST_CITED = 12
MOST_CAUSES = 5

_RECOVERED = re.compile(
    r"\b(?:re-?connected|connected to|connection (?:established|restored)|recovered|back online|accepting connections"
    r"|ready (?:to|for)|is ready|now healthy|listening on|succeeded|started successfully|startup complete)\b",
    re.IGNORECASE,
)

_WHO = {"engine": "error of the engine", "health": "output of the health check"}

_ONE_REQUEST = re.compile(
    r"\bclient: [\d.a-f:]+,|\brequest: \"|\bcode 4\d\d, message|\" 4\d\d (?:\d+|-)"
    r"|\b(?:HTTP|status)\S{0,8}[ =:\"]{1,3}404\b"
)


@dataclass(frozen=True, slots=True)
class Found:
    """A cause that is held likely: how likely, the lines and facts that say so, and what it is about."""

    cause: Cause
    confidence: float
    lines: tuple[int, ...]
    facts: tuple[str, ...] = ()
    what: str | None = None


@dataclass(slots=True)
class _Evidence:
    weight: float = 0.0
    what: str | None = None
    places: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    said_by: list[str] = field(default_factory=list)
    hits: int = 0


def likely(events: Sequence[Event], facts: Facts, question: str = "") -> list[Found]:
    """The causes that are held likely, the likeliest first. `question` turns the scales between equals."""
    said = [Event((line,), line.message) for line in facts.said]
    evidence = _evidence([*events, *said], facts)
    found = [one for cause in CAUSES if (one := _judged(cause, evidence.get(cause.code), events, facts)) is not None]
    if (thrown := _unhandled(events, facts)) is not None:
        found.append(thrown)
    if "login_attacks" in evidence and (entered := break_in(events)) is not None:
        found.append(Found(BY_CODE["break_in"], entered.confidence, _cited(entered.lines), (), entered.who))
    asked = set(re.findall(r"[a-z]{3,}", question.lower()))
    ranked = sorted(found, key=lambda one: one.confidence + 0.03 * bool(asked & set(one.cause.topics)), reverse=True)
    return [one for one in ranked if one.confidence >= CLAIM][:MOST_CAUSES]


def _evidence(events: Sequence[Event], facts: Facts) -> dict[str, _Evidence]:
    """What the words of each event are signs of; words that stood there before are not read again."""
    known: dict[tuple[str, bool], list[tuple[Cause, float, int, str | None]]] = {}
    evidence: dict[str, _Evidence] = {}
    counted: dict[tuple[str, int], int] = {}
    for place in range(_oldest(events), len(events)):
        event = events[place]
        trusted = event.level is not None and event.level >= ERROR
        key = (event.text, trusted)
        if key not in known:
            known[key] = list(_signs(event.text if trusted else telling(event.text)))
        for cause, weight, least, what in known[key]:
            counted[cause.code, least] = counted.get((cause.code, least), 0) + 1
            one = evidence.setdefault(cause.code, _Evidence())
            one.places.append(place)
            one.lines += _telling(event)
            if (who := _WHO.get(event.first.source)) and who not in one.said_by:
                one.said_by.append(who)
            if counted[cause.code, least] < least:
                continue
            one.hits += 1
            weight *= 1.0 if cause.deed else _voice(event.first, event, facts)
            if weight >= one.weight:
                one.weight, one.what = weight, what or one.what
    return evidence


def _oldest(events: Sequence[Event]) -> int:
    """The first event whose words are looked at."""
    left, seen, place = MOST_READ, set[str](), len(events)
    while place and left > 0:
        place -= 1
        if (text := events[place].text) not in seen:
            seen.add(text)
            left -= len(text)
    return place


def _telling(event: Event) -> list[int]:
    """The first line of an event, and the one with its message."""
    first = event.lines[0]
    told = next((line for line in event.lines if line.message.strip().endswith(event.message)), first)
    return list(dict.fromkeys(line.number for line in (first, told) if line.source == "log"))


def _signs(text: str) -> Iterable[tuple[Cause, float, int, str | None]]:
    """Each cause that a text is a sign of, by its strongest sign."""
    if not text:
        return
    for cause in CAUSES:
        best: tuple[float, int, str | None] | None = None
        for sign in cause.signs:
            if (best is None or sign.weight > best[0]) and (match := sign.words.search(text)) is not None:
                caught = match.groupdict()
                best = sign.weight, sign.least, caught.get("what") or caught.get("where") or (best[2] if best else None)
        if best is not None:
            yield cause, *best


def _voice(line: Line, event: Event, facts: Facts) -> float:
    """How much it counts that this line says so."""
    if line.source == "health":
        return 0.7  # that the check can't reach the program is no news: why it can't is
    if facts.running and facts.health != "unhealthy" and _ONE_REQUEST.search(event.message):
        return 0.5  # what one request met is no trouble of the program
    if line.source == "engine" or event.level is None or event.level >= ERROR:
        return 1.0
    if event.level >= WARNING:
        return 0.87
    return 0.75 if facts.failing else 0.5


def _judged(cause: Cause, evidence: _Evidence | None, events: Sequence[Event], facts: Facts) -> Found | None:
    told = cause.facts(facts) if cause.facts else None
    by_words = 0.0
    if evidence is not None and evidence.weight:
        since = 1.0 if cause.deed else _since(evidence, events, facts)
        by_words = evidence.weight * since + min(0.06, 0.02 * log2(evidence.hits))
    sure = 1 - (1 - by_words) * (1 - (told[0] if told else 0.0))
    if sure <= 0:
        return None
    return Found(
        cause,
        round(min(sure, SUREST), 2),
        _cited(evidence.lines if evidence and by_words else _last(events)),
        (*((told[1],) if told else ()), *(evidence.said_by if evidence and by_words else ())),
        evidence.what if evidence and by_words else None,
    )


def _since(evidence: _Evidence, events: Sequence[Event], facts: Facts) -> float:
    """How much it still counts, by what came after it."""
    last = max(evidence.places)
    if last >= len(events):  # the engine's own words, of now
        return 1.0
    later = events[last + 1 :]
    if facts.failing:
        return 1.0 if len(later) <= max(30, len(events) // 5) else 0.9
    if any(_RECOVERED.search(event.message) for event in later):
        return 0.5 if facts.running else 0.75
    if facts.running:
        quiet = sum(event.severity < WARNING for event in later)
        return 0.5 if quiet >= max(10, 3 * evidence.hits) else 0.95
    return 1.0


def _unhandled(events: Sequence[Event], facts: Facts) -> Found | None:
    """A trace near the end of a program that has ended badly, or at the very end of a file."""
    if facts.running is None:
        near = list(events)[-3:]
    elif facts.failing and not facts.running:
        near = list(events)[-max(10, len(events) // 4) :]
    else:
        return None
    thrown = [event for event in near if event.language is not None]
    if not thrown:
        return None
    event = thrown[-1]
    confidence = 0.66 if facts.failing else 0.55
    lines = _cited([line.number for line in event.lines if line.source == "log"])
    return Found(BY_CODE["unhandled_exception"], confidence, lines, (), event.message[:200])


def _last(events: Sequence[Event]) -> list[int]:
    """The last lines, for what is known by facts alone: they say most about an end."""
    return [line.number for event in events[-3:] for line in event.lines[-1:]]


def _cited(numbers: Iterable[int]) -> tuple[int, ...]:
    """Line numbers without repeats: where many say the same, the first ones and the last."""
    every = sorted(dict.fromkeys(numbers))
    if len(every) <= MOST_CITED:
        return tuple(every)
    half = MOST_CITED // 2
    return (*every[:half], *every[-half:])
