"""Stack traces folded: what a runtime prints over many lines becomes one event that says what was thrown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from systemmanager.diagnosis.lines import CRITICAL, ERROR, LONGEST, Line, telling

MOST_LINES = 400
"""Lines of one trace; a longer one goes on as the next."""

MOST_TEXT = 6000


@dataclass(frozen=True, slots=True)
class Event:
    """A line, or a trace: its lines, and `message`, the part that says what happened. `language` names a trace's."""

    lines: tuple[Line, ...]
    message: str
    language: str | None = None

    @property
    def first(self) -> Line:
        return self.lines[0]

    @property
    def severity(self) -> int:
        highest = max(line.severity for line in self.lines)
        return max(highest, ERROR) if self.language else highest

    @property
    def level(self) -> int | None:
        """The level that is named; a trace is an error, whatever its lines say."""
        if self.language:
            return max(ERROR, min(self.first.level or ERROR, CRITICAL))
        return self.first.level

    @property
    def text(self) -> str:
        """All of it, as signs of causes are looked for in it."""
        if len(self.lines) == 1:
            return self.first.message
        return "\n".join((self.message, *(line.message for line in self.lines)))[:MOST_TEXT]

    @property
    def telling(self) -> str:
        """The message without what sounds like a failure and is none; what calls itself an error means it."""
        return self.message if (self.level or 0) >= ERROR else telling(self.message)


@dataclass(frozen=True, slots=True)
class Shape:
    """How a runtime writes a trace: `begin` fits its first line, which holds `word`; `frame` fits each that goes on.
    `tells` fits the line with the message, and with `last` that line ends the trace."""

    language: str
    word: str
    begin: re.Pattern[str]
    frame: re.Pattern[str]
    tells: re.Pattern[str]
    last: bool = False


_JAVA = r"(?<![\w$.])(?:[a-z][\w$]*\.){1,8}[A-Z][\w$]*(?:Exception|Error|Throwable|Failure)\b"
SHAPES = (
    Shape(
        "Python",
        "Traceback (",
        re.compile(r".{0,200}?Traceback \(most recent call last\):\s*$"),
        re.compile(r"  |\t|\s*$|During handling of|The above exception|Traceback \(most recent|\s*[|+-]"),
        re.compile(r"(?:[\w.]+\.)?[A-Z]\w*(?:: |$)|(?:KeyboardInterrupt|SystemExit)"),
        last=True,
    ),
    Shape(
        ".NET",
        "xception",
        re.compile(r"Unhandled exception\. |(?:fail: .{0,200})?System\.(?:\w+\.)*\w*Exception\b"),
        re.compile(r"\s+at .|\s*---(?:>| End)|\s+\S.{0,300}Exception"),
        re.compile(r"(?:Unhandled exception\. )?(?:\w+\.)+\w*Exception"),
    ),
    Shape(
        "Java",
        ".",
        re.compile(rf"(?:.{{0,300}}?\b)?(?:Exception in thread \".{{0,100}}?\" )?{_JAVA}"),
        re.compile(r"\s+at [\w$.<>/@-]{1,300}\(|\s*Caused by: |\s*\.\.\. \d+ (?:more|common)|\s*Suppressed: "),
        re.compile(rf".{{0,200}}?{_JAVA}|\s*Caused by: "),
    ),
    Shape(
        "Go",
        ": ",
        re.compile(r"(?:panic: |fatal error: ).{0,1500}"),
        re.compile(r"\s*$|goroutine \d+ \[|\[signal |\t|\S{1,200}\(.{0,200}\)$|created by |exit status \d|\s+panic: "),
        re.compile(r"panic: |fatal error: "),
    ),
    Shape(
        "Rust",
        "panicked at ",
        re.compile(r"thread '.{1,100}' (?:\(\d+\) )?panicked at "),
        re.compile(r"note: |stack backtrace:|\s+\d+: |\s+at "),
        re.compile(r"called `|thread '"),
    ),
    Shape(
        "PHP",
        "Fatal error: ",
        re.compile(r"(?:PHP )?Fatal error: .{0,300}"),
        re.compile(r"(?:PHP )?Stack trace:|(?:PHP\s+)?#?\d+[. ] |\s+thrown in|PHP\s+\d+\.|#\d+ "),
        re.compile(r"(?:PHP )?Fatal error: "),
    ),
    Shape(
        "Ruby",
        ":in ",
        re.compile(r"\S{1,300}:\d+:in [`'].{0,300}"),
        re.compile(r"\s+(?:\d+: )?from \S|\s+from "),
        re.compile(r"\S{1,300}:\d+:in "),
    ),
    Shape(
        "Node",
        ":",
        re.compile(r"(?:Uncaught )?(?:[A-Z]\w*)?Error(?: \[\w+\])?: |(?:\w+:)?/\S{1,300}:\d+$|node:\S{1,100}:\d+$"),
        re.compile(
            r"\s+at |\s*\^+\s*$|\s*$|\s{2,}\S|Node\.js v\d|\}$|Require stack:|- /|\s*throw "
            r"|(?:Uncaught )?(?:[A-Z]\w*)?Error(?: \[\w+\])?: "
        ),
        re.compile(r"(?:Uncaught )?(?:[A-Z]\w*)?Error(?: \[\w+\])?: "),
    ),
)


def fold(lines: Sequence[Line]) -> list[Event]:
    """The log as events: a trace is one, every other line is one."""
    events: list[Event] = []
    taken: set[int] = set()
    for at, line in enumerate(lines):
        if at in taken:
            continue
        trace = _trace(lines, at)
        if trace is None:
            events.append(Event((line,), line.message))
        else:
            events.append(trace[0])
            taken.update(trace[1])
    return events


def _trace(lines: Sequence[Line], at: int) -> tuple[Event, list[int]] | None:
    """The trace that begins here, and where its lines stand; one line alone is none."""
    head = lines[at].message
    for shape in SHAPES:
        if shape.word in head and shape.begin.match(head):
            places = _places(lines, at, shape)
            if len(places) > 1:
                whole = tuple(lines[place] for place in places)
                return Event(whole, _message(whole, shape), shape.language), places
    return None


def _places(lines: Sequence[Line], at: int, shape: Shape) -> list[int]:
    """Where the lines of a trace stand. Output and errors come in two streams: a line of the other one may stand
    between two of a trace."""
    places, place, most = [at], at + 1, min(len(lines), at + MOST_LINES)
    if shape.language == "Rust" and place < most and not shape.frame.match(lines[place].message):
        places.append(place)  # since 1.73 the message stands on a line of its own
        place += 1
    while place < most:
        text = lines[place].message
        if shape.frame.match(text):
            places.append(place)
        elif shape.last and shape.tells.match(text):
            places.append(place)
            if place + 1 >= most or not re.match(r"\s*$|During handling|The above exc", lines[place + 1].message):
                break
        elif not any(_goes_on(lines[later].message, shape) for later in range(place + 1, min(place + 3, most))):
            break
        place += 1
    while len(places) > 1 and not lines[places[-1]].message.strip():
        places.pop()
    return places


def _goes_on(text: str, shape: Shape) -> bool:
    """Whether a line can be nothing but a part of a trace that has begun."""
    inside = text[:1].isspace() and bool(text.strip()) and shape.frame.match(text) is not None
    return inside or (
        shape.last and re.match(r"(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Warning|Exit)\b", text) is not None
    )


def _message(lines: Sequence[Line], shape: Shape) -> str:
    """What was thrown: for Python and Java the innermost, else the first that tells."""
    telling = [line.message.strip() for line in lines if shape.tells.match(line.message)]
    if shape.language == "Rust" and len(lines) > 1 and not shape.frame.match(lines[1].message):
        return f"{lines[0].message.strip()} {lines[1].message.strip()}"[:LONGEST]
    if shape.language in ("Python", "Java") and telling:
        return telling[-1].removeprefix("Caused by: ")
    return telling[0] if telling else lines[0].message
