"""Times, levels, streams and messages of lines in every common format."""

from datetime import UTC, datetime

import pytest

from systemmanager.diagnosis.lines import CRITICAL, DEBUG, ERROR, INFO, WARNING, of_journal, read, telling

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
AT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC).timestamp()

LINES: list[tuple[str, float | None, int | None, str]] = [
    ("2026-02-03T04:05:06Z ERROR it broke", AT, ERROR, "ERROR it broke"),
    ("2026-02-03 04:05:06,250 WARN it may", AT + 0.25, WARNING, "WARN it may"),
    ("2026-02-03T05:05:06.5+01:00 info: ok", AT + 0.5, INFO, "info: ok"),
    ("2026-02-03 04:05:06.000 UTC [1] FATAL:  no", AT, CRITICAL, "[1] FATAL:  no"),
    ("2026-02-03 04:05:06 -0000 [notice] x", AT, INFO, "[notice] x"),
    ("[2026-02-03 04:05:06] app.CRITICAL: boom", AT, CRITICAL, "app.CRITICAL: boom"),
    ("2026/02/03 04:05:06 [emerg] 1#1: bind() failed", AT, CRITICAL, "[emerg] 1#1: bind() failed"),
    ("2026/02/03 04:05:06.123456 main.go:3: hello", AT + 0.123456, None, "main.go:3: hello"),
    ("Feb  3 04:05:06 web nginx[77]: started", AT, None, "started"),
    ("<11>Feb  3 04:05:06 web app: no", AT, ERROR, "no"),
    ("<165>1 2026-02-03T04:05:06Z web app 1 - - hi", AT, INFO, "web app 1 - - hi"),
    ("Feb 03 04:05:06 web kernel: Killed process 7 (x)", AT, None, "Killed process 7 (x)"),
    ("Dec 31 23:59:59 web app: old", datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp(), None, "old"),
    ('::1 - - [03/Feb/2026:04:05:06 +0000] "GET / HTTP/1.1" 502 9', AT, ERROR, '::1 - - "GET / HTTP/1.1" 502 9'),
    ('::1 - - [03/Feb/2026:05:05:06 +0100] "GET /e HTTP/1.1" 404 9', AT, INFO, '::1 - - "GET /e HTTP/1.1" 404 9'),
    ("[Tue Feb 03 04:05:06.5 2026] [core:error] [pid 1] no", AT + 0.5, ERROR, "[core:error] [pid 1] no"),
    ("E0203 04:05:06.000000       1 main.go:7] no", AT, ERROR, "no"),
    ("1:M 03 Feb 2026 04:05:06.500 # low memory", AT + 0.5, WARNING, "low memory"),
    ("1:M 03 Feb 2026 04:05:06.500 * Ready", AT + 0.5, INFO, "Ready"),
    ("03-Feb-2026 04:05:06.500 SEVERE [main] x", AT + 0.5, ERROR, "SEVERE [main] x"),
    (f"{int(AT)}.5 hello", AT + 0.5, None, "hello"),
    (f"{int(AT * 1000) + 250} hello", AT + 0.25, None, "hello"),
    ('time="2026-02-03T04:05:06Z" level=error msg="no"', AT, ERROR, 'time="2026-02-03T04:05:06Z" level=error msg="no"'),
    ('{"level":"warn","ts":"2026-02-03T04:05:06Z","msg":"low"}', AT, WARNING, "low"),
    (f'{{"level":50,"time":{int(AT * 1000)},"msg":"no","err":{{"type":"E","message":"x"}}}}', AT, ERROR, "no: E: x"),
    (f'{{"severity":"DEBUG","timestamp":{AT},"message":"d"}}', AT, DEBUG, "d"),
    ('{"broken', None, None, '{"broken'),
    ("no time here", None, None, "no time here"),
    ("2026-99-99 04:05:06 what", None, None, "what"),
    ("INFO errors: level=error", None, INFO, "INFO errors: level=error"),
]


@pytest.mark.parametrize(("text", "time", "level", "message"), LINES, ids=[text[:40] for text, *_ in LINES])
def test_a_line_of_each_format(text: str, time: float | None, level: int | None, message: str) -> None:
    (line,) = read(text, NOW)
    assert (line.number, line.time, line.level, line.message) == (1, time and pytest.approx(time), level, message)


def test_wrapped_lines_name_their_stream() -> None:
    (cri,) = read("2026-02-03T04:05:06.000000000Z stderr F panic: no", NOW)
    (docker,) = read('{"log":"[error] no\\n","stream":"stderr","time":"2026-02-03T04:05:06.000000000Z"}', NOW)
    assert (cri.stream, cri.time, cri.message) == ("stderr", AT, "panic: no")
    assert (docker.stream, docker.time, docker.level) == ("stderr", AT, ERROR)


def test_the_engines_time_wins_over_the_programs() -> None:
    (line,) = read("2026-02-03T04:05:06.000000001Z 2026-02-03 09:05:06 ERROR no\n", NOW, stamped=True)
    assert line.time == pytest.approx(AT) and line.message == "ERROR no"


def test_lines_are_numbered_from_one_and_cut() -> None:
    found = read("a\n\nb" + "x" * 9000 + "\r\n", NOW)
    assert [line.number for line in found] == [1, 2, 3] and len(found[2].text) == 2000


def test_an_entry_of_the_journal_may_have_many_lines_or_bytes() -> None:
    entry = {"MESSAGE": "a\nERROR b", "__REALTIME_TIMESTAMP": str(int(AT * 1e6)), "PRIORITY": "6"}
    assert [(one.number, one.message, one.time, one.level) for one in of_journal(entry, 5)] == [
        (5, "a", AT, None),
        (6, "ERROR b", AT, ERROR),
    ]
    (broken,) = of_journal({"MESSAGE": [104, 105, 255], "PRIORITY": "3"}, 1)
    assert broken.message == "hi\ufffd" and broken.level == ERROR and broken.time is None
    assert of_journal({}, 1) == []


@pytest.mark.parametrize(
    "text", ["0 errors", "errors=0", "error_log", "retrying disabled", "would be refused", "error.log"]
)
def test_harmless_words_are_taken_out_and_others_stay(text: str) -> None:
    assert not any(word in telling(text) for word in ("error", "retry", "refused"))
    assert "permission denied" in telling(f"{text}: permission denied")
