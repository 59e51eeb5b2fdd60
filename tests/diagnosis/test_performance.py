"""What a log says about speed, with the lines that say so; and that the engine itself is quick on hostile lines."""

import time

import pytest

from systemmanager.diagnosis.diagnose import Log, diagnose
from systemmanager.diagnosis.facts import Facts
from systemmanager.diagnosis.performance import KINDS

SAYINGS = {
    "slow": "GET /report completed in 4200ms",
    "slow_queries": "LOG:  duration: 5120.331 ms  statement: select 1",
    "pauses": "[gc] Pause Full (Allocation Failure) 812M->640M",
    "exhausted": "FATAL: sorry, too many connections already",
    "timeouts": "WARN upstream timed out",
    "overload": "task jbd2 blocked for more than 120 seconds",
}


@pytest.mark.parametrize("code", SAYINGS)
def test_what_is_slow_is_told_with_its_lines(code: str) -> None:
    found = diagnose(Log.of("x", f"ok\n{SAYINGS[code]}\n", 1.8e9))
    issue = next(issue for issue in found.issues if issue.kind.code == code)
    assert issue.lines == [2] and issue.count == 1 and (code != "slow" or issue.worst == pytest.approx(4.2))


def test_every_kind_has_a_saying_and_fast_is_no_issue() -> None:
    assert set(SAYINGS) == {kind.code for kind in KINDS}
    quick = "GET / completed in 42ms\nINFO timeouts=0\nretry on timeout: enabled\n"
    assert diagnose(Log.of("x", quick, 1.8e9)).issues == []


HOSTILE = {
    "spaces": " " * 1990,
    "dots": "a." * 990,
    "slashes": "/" * 1900 + ":",
    "quotes": "'\"" * 990,
    "words": "connection to " * 140,
    "numbers": "1" * 1900,
    "denied": "permission denied " * 110,
    "frames": "  at x" + "(" * 1900,
    "env": "A_" * 990,
    "if": "if " + "a " * 990,
    "lookup": "lookup a " * 220,
    "Error": "aError: " * 240,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_line_makes_the_engine_slow(name: str) -> None:
    text = "\n".join(f"{HOSTILE[name]}{number}" for number in range(20))
    started = time.process_time()
    diagnose(Log.of("x", text, 1.8e9, Facts(running=False, exit_code=1)))
    assert time.process_time() - started < 1.0  # 20 lines of 2,000 characters; usually some ms


def test_ten_thousand_lines_take_about_a_second() -> None:
    rows = (f"2026-01-01T00:00:00Z ERROR worker {number} failed: timeout of job-{number}" for number in range(10_000))
    started = time.process_time()
    diagnose(Log.of("x", "\n".join(rows), 1.8e9))
    assert time.process_time() - started < 10.0
