"""One log line: when, how severe, from which stream, and the message without all that.

Formats: ISO 8601 and RFC 3339, syslog (RFC 3164, RFC 5424), nginx, Apache and the common log format, klog, Redis,
PostgreSQL, Java, logfmt, JSON lines, Docker's json-file, CRI, seconds or milliseconds since 1970.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

LONGEST = 2000
"""Characters of a line that are looked at."""

DEBUG, INFO, WARNING, ERROR, CRITICAL = 10, 20, 30, 40, 50
SEVERITIES = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error", CRITICAL: "critical"}

_LEVELS = {
    **dict.fromkeys(("trace", "debug", "dbg", "fine", "finer", "finest", "verbose"), DEBUG),
    **dict.fromkeys(("info", "inf", "information", "notice", "log", "config", "note", "system"), INFO),
    **dict.fromkeys(("warning", "warn", "wrn"), WARNING),
    **dict.fromkeys(("error", "err", "eror", "severe", "fail"), ERROR),
    **dict.fromkeys(("critical", "crit", "fatal", "ftl", "emerg", "emergency", "alert", "panic", "dpanic"), CRITICAL),
}
_NAMES = "|".join(sorted(_LEVELS, key=len, reverse=True))
_SHOUTED = re.compile(rf"(?:^|[\s\[(<|:.])({_NAMES.upper()})(?=[\s\])>|:,]|$)")
_MARKED = re.compile(
    rf"^[^\s\[]{{0,60}}\s{{0,8}}\[({_NAMES})\]|\b(?:level|lvl|severity)=\"?({_NAMES})\b", re.IGNORECASE
)
_LEADING = re.compile(rf"^\s*(?:[\w./-]{{1,40}}:\s){{0,2}}(?:PHP\s+)?({_NAMES})(?:\s+error)?\s?:", re.IGNORECASE)
_KLOG = re.compile(r"([IWEF])(\d{2})(\d{2}) (\d{2}):(\d{2}):(\d{2})\.(\d{1,9})\s+\d+ [^\]\s]{1,80}\] ")
_REDIS = re.compile(r"\d+:[A-Z] (?:(\d{1,2}) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d)(?:\.(\d+))? )([.*#-]) ")
_PRIORITY = re.compile(r"<(\d{1,3})>(?:1 )?")

_FAILING = re.compile(
    r"\b(?:error|exception|traceback|fail(?:ed|ure|s)?|fatal|panic(?:ked)?|denied|refused|unable to|can(?:no|')t"
    r"|could not|no such|not found|segmentation fault|aborted|killed|crash(?:ed)?|invalid|timed? ?out"
    r"|unreachable|corrupt)\b"
    r"|[a-z](?:Error|Exception)\b",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"\b(?:0|no|zero|without(?: any)?|never) (?:new |more )?(?:connections? )?"
    r"(?:errors?|failures?|failed|warnings?|problems?|issues?|exceptions?|timeouts?|refused|denied|timed out"
    r"|unreachable)\b"
    r"|\b(?:errors?|failures?|failed|warnings?|dropped|timeouts?|refused|denied|exceptions?|unreachable|killed)\"?"
    r"\s?[=:]\s?\"?(?:0\b(?!x)|none\b|null\b|false\b|\[\])"
    r"|error[_-](?:log|page|reporting|rate|handler|handling|count|budget)\w*|errors?\.log|on-?failure"
    r"|fail-?(?:over|safe|fast)|fail2ban"
    r"|\b(?:retr(?:y|ies|ying)|errors?|failures?|timeouts?|exceptions?|crash\w*|oom|rate limit\w*|clock[ -]skew)"
    r":? (?:\w+ ){0,3}(?:disabled|enabled|configured|registered|installed|initiali[sz]ed|loaded|handled|cleared"
    r"|handler|reporting|detection)\b"
    r"|\b(?:would|will|may|might|should|can) (?:be |not |\w+ly )?"
    r"(?:fail|error|retry|denied|refused|crash|killed|expired?)\b"
    r"|\b(?:if|when|unless|until|in case) (?:[\w'-]+ ){1,8}?"
    r"(?:fails?|failed|denied|refused|errors?|unavailable|expire[ds]?|exceeded|not found|unreachable|full)\b",
    re.IGNORECASE,
)
_OVER = re.compile(
    r"\b(?:recovered|recovery complete[d]?|resolved|succeeded after|successfully re\w+"
    r"|self-?tests?|simulat\w+|dry.?run)\b",
    re.IGNORECASE,
)


def telling(message: str) -> str:
    """The message without phrases that sound like a failure and tell of none; "" when that is all of it."""
    return "" if _OVER.search(message) else _HARMLESS.sub(" ", message)


_ACCESS = re.compile(r"\"(?:[A-Z]{3,10}) \S{1,1500} HTTP/[\d.]+\" (\d{3}) ")


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `number` counts from 1 in what was read. `level` is None where the line names none. `source` is "log",
    or where else the text stands: the engine's own words, or a health check's output."""

    number: int
    text: str
    message: str
    time: float | None = None
    level: int | None = None
    stream: str | None = None
    source: str = "log"

    @property
    def severity(self) -> int:
        """The level that the line names, else what its words suggest."""
        if self.level is not None:
            return self.level
        return ERROR if _FAILING.search(self.message) and _FAILING.search(telling(self.message)) else INFO


def read(text: str, until: float, *, stamped: bool = False) -> list[Line]:
    """The lines of a log. `until` (seconds since 1970) helps where a date has no year; `stamped`: the engine has put
    its own time before each line."""
    parse = Parser(until)
    rows = text.split("\n")
    if rows and not rows[-1]:
        rows.pop()
    return [parse.line(number, row, stamped=stamped) for number, row in enumerate(rows, 1)]


class Parser:
    """Reads lines; the format that fitted last is tried first."""

    def __init__(self, until: float) -> None:
        self._until = until
        self._formats: list[_Format] = [_iso, _slashed, _syslog, _klog, _redis, _bracketed, _dashed, _epoch]

    def line(self, number: int, raw: str, *, stamped: bool = False) -> Line:
        """One line. The engine's time wins over the program's own, which may be of another zone."""
        raw = raw.rstrip("\r")[: LONGEST * 4]
        seen: float | None = None
        if stamped:
            head, _, rest = raw.partition(" ")
            if (found := _ISO.match(head)) is not None:
                seen, raw = _of_iso(found), rest
        text, stream = raw[:LONGEST], None
        if (wrapped := _cri(text) or _json_file(raw)) is not None:
            time, stream, text = wrapped
            seen = seen if seen is not None else time
        time, level, message = self._parts(text)
        return Line(number, text, message, seen if seen is not None else time, level, stream)

    def _parts(self, text: str) -> tuple[float | None, int | None, str]:
        if text.startswith("{") and (parsed := _json_line(text)) is not None:
            return parsed
        level, bare = None, text
        if (found := _PRIORITY.match(text)) is not None:
            level, bare = of_priority(int(found[1]) & 7), text[found.end() :]
        for place, form in enumerate(self._formats):
            if (parts := form(bare, self._until)) is not None:
                self._formats.insert(0, self._formats.pop(place))
                time, own, message = parts
                return time, level or own or level_of(message), message
        return _logfmt_time(bare), level or level_of(bare), bare


def level_of(message: str) -> int | None:
    """The level that stands in the first words of a message; an access log's status counts as one."""
    head = message[:120]
    tried = (_MARKED.search(head), _LEADING.match(head), _SHOUTED.search(head[:60]))
    if named := [found for found in tried if found is not None]:
        first = min(named, key=lambda found: found.start())
        return _LEVELS[next(group for group in first.groups() if group).lower()]
    if found := _ACCESS.search(message):
        return ERROR if found[1] >= "500" else INFO
    return None


def of_priority(priority: int) -> int:
    """A syslog severity (RFC 5424: 0 emergency ... 7 debug) as a level."""
    return (
        CRITICAL
        if priority <= 2
        else ERROR
        if priority == 3
        else WARNING
        if priority == 4
        else INFO
        if priority <= 6
        else DEBUG
    )


# --- times ------------------------------------------------------------------------------------------------------------

_Parts = tuple[float | None, int | None, str]
_Format = Callable[[str, float], _Parts | None]

_NAMES_OF_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name: number for number, name in enumerate(_NAMES_OF_MONTHS, 1)}
_CLOCK = r"(\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?"
_ISO = re.compile(rf"\[?(\d{{4}})-(\d\d)-(\d\d)[T ]{_CLOCK} ?(Z|UTC|GMT|[+-]\d\d:?\d\d)?\]?")
_SLASHED = re.compile(rf"(\d{{4}})/(\d\d)/(\d\d) {_CLOCK}")
_SYSLOG = re.compile(r"([A-Z][a-z]{2}) {1,2}(\d{1,2}) (\d\d):(\d\d):(\d\d)(?:\.\d+)?(?: [A-Z]{3,4})? ")
_TAG = re.compile(r"[\w.:-]{1,255} [\w./@-]{1,80}(?:\[\d{1,10}\])?: ")
_COMMON = re.compile(rf"\[(\d\d)/([A-Z][a-z]{{2}})/(\d{{4}}):{_CLOCK}(?: ([+-]\d{{4}}))?\]")
_APACHE = re.compile(rf"\[[A-Z][a-z]{{2}} ([A-Z][a-z]{{2}}) (\d\d) {_CLOCK} (\d{{4}})\] ?")
_DASHED = re.compile(rf"\[?(\d{{1,2}})[- ]([A-Z][a-z]{{2}})[- ](\d{{4}}) {_CLOCK}(?: UTC)?\]?")
_EPOCH = re.compile(r"\[?(1\d{9})(\d{3})?(?:\.(\d{1,9}))?\]?[ :]")
_LOGFMT = re.compile(r"\b(?:time|ts|t)=\"?([0-9T:.+Z-]{10,40})")


def _moment(year: int, month: int, day: int, clock: Iterable[str | None], zone: str | None = None) -> float | None:
    hour, minute, second, fraction = clock
    try:
        found = datetime(
            year, month, day, int(hour or 0), int(minute or 0), min(int(second or 0), 59), tzinfo=_zone(zone)
        )
    except ValueError:
        return None
    return found.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)


def _zone(text: str | None) -> timezone:
    if text is None or text[0] not in "+-":
        return UTC
    digits = text[1:].replace(":", "")
    away = timedelta(hours=int(digits[:2]), minutes=int(digits[2:4]))
    return timezone(-away if text[0] == "-" else away) if away < timedelta(days=1) else UTC


def _of_iso(found: re.Match[str]) -> float | None:
    return _moment(int(found[1]), int(found[2]), int(found[3]), found.group(4, 5, 6, 7), found[8])


def _after(found: re.Match[str], text: str) -> str:
    return text[found.end() :].lstrip(" :-|\t")


def _iso(text: str, until: float) -> _Parts | None:
    if (found := _ISO.match(text)) is None:
        return None
    rest = _after(found, text)
    tag = _TAG.match(rest)
    return _of_iso(found), None, rest[tag.end() :] if tag and tag[0].endswith("]: ") else rest


def _slashed(text: str, until: float) -> _Parts | None:
    if (found := _SLASHED.match(text)) is None:
        return None
    return _moment(int(found[1]), int(found[2]), int(found[3]), found.group(4, 5, 6, 7)), None, _after(found, text)


def _syslog(text: str, until: float) -> _Parts | None:
    """RFC 3164 names no year: the last one in which the time is not in the future."""
    if (found := _SYSLOG.match(text)) is None or found[1] not in _MONTHS:
        return None
    year = datetime.fromtimestamp(until, UTC).year
    clock = (found[3], found[4], found[5], None)
    time = _moment(year, _MONTHS[found[1]], int(found[2]), clock)
    if time is None or time > until + 86_400:
        time = _moment(year - 1, _MONTHS[found[1]], int(found[2]), clock)
    rest = text[found.end() :]
    tag = _TAG.match(rest)
    return time, None, rest[tag.end() :] if tag else rest


def _klog(text: str, until: float) -> _Parts | None:
    if (found := _KLOG.match(text)) is None:
        return None
    year = datetime.fromtimestamp(until, UTC).year
    time = _moment(year, int(found[2]), int(found[3]), found.group(4, 5, 6, 7))
    return time, {"I": INFO, "W": WARNING, "E": ERROR, "F": CRITICAL}[found[1]], text[found.end() :]


def _redis(text: str, until: float) -> _Parts | None:
    if (found := _REDIS.match(text)) is None or found[2] not in _MONTHS:
        return None
    time = _moment(int(found[3]), _MONTHS[found[2]], int(found[1]), found.group(4, 5, 6, 7))
    return time, {".": DEBUG, "-": INFO, "*": INFO, "#": WARNING}[found[8]], text[found.end() :]


def _bracketed(text: str, until: float) -> _Parts | None:
    """Apache's error log, and the common log format, whose time stands in the middle of the line."""
    if (found := _APACHE.match(text)) is not None and found[1] in _MONTHS:
        time = _moment(int(found[7]), _MONTHS[found[1]], int(found[2]), found.group(3, 4, 5, 6))
        rest = text[found.end() :]
        named = re.match(r"\[(?:\w+:)?(\w+)\] ", rest)
        return time, _LEVELS.get(named[1].lower()) if named else None, rest
    if (found := _COMMON.search(text, 0, 300)) is None or found[2] not in _MONTHS:
        return None
    time = _moment(int(found[3]), _MONTHS[found[2]], int(found[1]), found.group(4, 5, 6, 7), found[8])
    return time, None, f"{text[: found.start()]}{text[found.end() :].lstrip()}"


def _dashed(text: str, until: float) -> _Parts | None:
    if (found := _DASHED.match(text)) is None or found[2] not in _MONTHS:
        return None
    time = _moment(int(found[3]), _MONTHS[found[2]], int(found[1]), found.group(4, 5, 6, 7))
    return time, None, _after(found, text)


def _epoch(text: str, until: float) -> _Parts | None:
    if (found := _EPOCH.match(text)) is None:
        return None
    return float(found[1]) + float(f"0.{found[2] or found[3] or 0}"), None, _after(found, text)


def _logfmt_time(text: str) -> float | None:
    found = _LOGFMT.search(text[:200])
    return None if found is None else _time_of(found[1])


def _time_of(value: Any) -> float | None:
    """A time as JSON lines write it: ISO 8601, or seconds, milli-, micro- or nanoseconds since 1970."""
    if isinstance(value, str):
        if (found := _ISO.match(value)) is not None:
            return _of_iso(found)
        if not re.fullmatch(r"\d{10,19}(?:\.\d{1,9})?", value):
            return None
        value = float(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    for unit in (1.0, 1e3, 1e6, 1e9):
        if 1e9 <= value / unit < 1e10:
            return value / unit
    return None


# --- lines that wrap others -------------------------------------------------------------------------------------------

_CRI = re.compile(r"(\d{4}-\d\d-\d\dT[0-9:.]{8,18}(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) [FP] ?")
_MESSAGES = ("msg", "message", "log", "event", "text", "MESSAGE")
_DETAILS = ("error", "err", "exception", "stack", "stacktrace", "exc_info", "reason", "cause")
_TIMES = ("time", "ts", "timestamp", "@timestamp", "datetime", "date", "t")
_SEVERITY = ("level", "severity", "lvl", "loglevel", "levelname", "log.level", "s")


def _cri(text: str) -> tuple[float | None, str | None, str] | None:
    if (found := _CRI.match(text)) is None:
        return None
    time = _ISO.match(found[1])
    return None if time is None else _of_iso(time), found[2], text[found.end() :]


def _object(text: str) -> dict[str, Any] | None:
    if not text.startswith("{") or not text.rstrip().endswith("}"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _json_file(raw: str) -> tuple[float | None, str | None, str] | None:
    """A line of Docker's own log file."""
    if not raw.startswith('{"log":') or (found := _object(raw)) is None or "stream" not in found:
        return None
    return _time_of(found.get("time")), str(found["stream"])[:6], str(found["log"]).rstrip("\r\n")[:LONGEST]


def _json_line(text: str) -> _Parts | None:
    if (found := _object(text)) is None:
        return None
    said = [str(found[name]) for name in _MESSAGES if found.get(name)][:1]
    said += [_detail(found[name]) for name in _DETAILS if found.get(name)]
    time = next((time for name in _TIMES if (time := _time_of(found.get(name))) is not None), None)
    level = next((_named(found[name]) for name in _SEVERITY if name in found), None)
    return time, level, (": ".join(said) or text)[:LONGEST]


def _detail(value: Any) -> str:
    if isinstance(value, dict):
        return ": ".join(str(value[name]) for name in ("type", "name", "code", "message", "stack") if value.get(name))
    return str(value)


def _named(value: Any) -> int | None:
    """A level by its name; pino and bunyan write numbers, of which 60 is fatal."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10:
        return max(DEBUG, min(CRITICAL, value // 10 * 10 - 10))
    return _LEVELS.get(
        str(value).strip().lower(), {"i": INFO, "w": WARNING, "e": ERROR, "f": CRITICAL}.get(str(value).lower())
    )


def of_journal(fields: dict[str, Any], number: int) -> list[Line]:
    """The lines of one entry of `journalctl --output=json`. A message that is no UTF-8 comes as a list of bytes."""
    said, at, priority = fields.get("MESSAGE"), fields.get("__REALTIME_TIMESTAMP", ""), fields.get("PRIORITY", "")
    if isinstance(said, list):
        said = bytes(byte for byte in said if isinstance(byte, int) and 0 <= byte < 256).decode("utf-8", "replace")
    parse, time = Parser(0.0), int(at) / 1e6 if isinstance(at, str) and at.isdigit() else None
    level = of_priority(int(priority)) if isinstance(priority, str) and priority in tuple("01234567") else None
    found = []
    for place, row in enumerate(str(said or "").splitlines()[:200]):
        line = parse.line(number + place, row)
        # Most programs leave the priority at "info": their own word counts for more.
        found.append(replace(line, time=time, level=line.level or (level if level and level >= WARNING else None)))
    return found
