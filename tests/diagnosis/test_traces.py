"""Stack traces of eight runtimes are one event each, and what follows them is another."""

import pytest

from systemmanager.diagnosis.lines import read
from systemmanager.diagnosis.traces import fold

TRACES = {
    "Python": (
        'Traceback (most recent call last):\n  File "a.py", line 3, in <module>\n    main()\n    ~~~~^^\n'
        "ValueError: bad\n\nThe above exception was the direct cause of the following exception:\n\n"
        'Traceback (most recent call last):\n  File "a.py", line 5, in <module>\napp.errors.Broken: no luck\n',
        "app.errors.Broken: no luck",
    ),
    "Java": (
        'Exception in thread "main" java.lang.IllegalStateException: can not start\n'
        "\tat com.example.App.main(App.java:12)\n\t... 12 more\n"
        "Caused by: java.net.ConnectException: Connection refused\n"
        "\tat java.base/sun.nio.ch.Net.connect(Native Method)\n",
        "java.net.ConnectException: Connection refused",
    ),
    "Go": (
        "panic: runtime error: invalid memory address or nil pointer dereference\n"
        "[signal SIGSEGV: segmentation violation"
        " code=0x1 addr=0x0 pc=0x1]\n\ngoroutine 1 [running]:\nmain.main()\n\t/app/main.go:8 +0x1d\nexit status 2\n",
        "panic: runtime error: invalid memory address or nil pointer dereference",
    ),
    "Node": (
        "node:internal/modules/cjs/loader:1080\n  throw err;\n  ^\n\nError: Cannot find module 'x'\nRequire stack:\n"
        "    at Module._load (node:internal/modules/cjs/loader:922:27) {\n  code: 'MODULE_NOT_FOUND',\n"
        "}\n\nNode.js v18.1\n",
        "Error: Cannot find module 'x'",
    ),
    "Rust": (
        "thread 'main' panicked at src/main.rs:4:10:\ncalled `Result::unwrap()` on an `Err` value: NotFound\n"
        "stack backtrace:\n   0: rust_begin_unwind\n             at /rustc/x/library/std/src/panicking.rs:5\n"
        "note: run with `RUST_BACKTRACE=full`\n",
        "called `Result::unwrap()` on an `Err` value: NotFound",
    ),
    ".NET": (
        "Unhandled exception. System.IO.FileNotFoundException: Could not find file '/app/x'.\n"
        "   at System.IO.File.Open(String path)\n   at App.Program.Main() in /src/Program.cs:line 4\n",
        "Unhandled exception. System.IO.FileNotFoundException: Could not find file '/app/x'.",
    ),
    "PHP": (
        "PHP Fatal error:  Uncaught PDOException: SQLSTATE[HY000] [2002] Connection refused in /app/a.php:3\n"
        "Stack trace:\n#0 /app/a.php(3): PDO->__construct()\n#1 {main}\n  thrown in /app/a.php on line 3\n",
        "PHP Fatal error:  Uncaught PDOException: SQLSTATE[HY000] [2002] Connection refused in /app/a.php:3",
    ),
    "Ruby": (
        "/app/a.rb:3:in `connect': no such host (SocketError)\n\tfrom /app/a.rb:9:in `run'\n"
        "\tfrom /app/a.rb:12:in `<main>'\n",
        "/app/a.rb:3:in `connect': no such host (SocketError)",
    ),
}


@pytest.mark.parametrize("language", TRACES)
def test_a_trace_is_one_event_that_says_what_was_thrown(language: str) -> None:
    text, message = TRACES[language]
    events = fold(read(f"before\n{text}after it, all is well\n", 1.8e9))
    assert [event.language for event in events] == [None, language, None], [event.message for event in events]
    assert message in events[1].message
    assert len(events[1].lines) >= len(text.rstrip("\n").split("\n")) - 1


def test_each_line_may_have_a_time_of_its_own() -> None:
    stamped = "".join(f"2026-01-01T00:00:00Z {row}\n" for row in TRACES["Java"][0].splitlines())
    assert [event.language for event in fold(read(stamped, 1.8e9, stamped=True))] == ["Java"]


def test_a_line_of_the_other_stream_does_not_break_a_trace() -> None:
    rows = TRACES["Python"][0].splitlines()[:5]
    for place in range(1, 5):
        mixed = [*rows[:place], "boot", *rows[place:]]
        events = fold(read("\n".join(mixed), 1.8e9))
        assert sorted(event.message for event in events) == ["ValueError: bad", "boot"], place


def test_what_only_looks_like_a_beginning_is_a_line() -> None:
    for text in ("Error: no\nfine\n", "java.lang.Foo is loaded\nok\n", "panic: at the disco\nok\n"):
        assert [event.language for event in fold(read(text, 1.8e9))] == [None, None]
