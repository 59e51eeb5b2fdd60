"""What a person sees: one line per audit record, whatever is in it."""

import io
from typing import Any

from rich.console import Console

from systemmanager.scopes import SCOPES
from systemmanager.terminal import print_audit, tokens_table


def shown(*records: dict[str, Any], width: int = 200) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_audit(console, records)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


OUTCOME = {
    "time": "2026-11-23T00:44:33.948166Z", "phase": "outcome", "subject": "bot", "tool": "manage_service",
    "target": "web-01", "code": "ok", "elapsed_ms": 12, "approved_by": "ann",
}  # fmt: skip
REFUSED = {
    "time": "2026-11-23T00:44:34.000000Z", "phase": "refused", "subject": "claude", "tool": "ping_host",
    "code": "scope_missing", "arguments": {"host": "db", "count": 3},
}  # fmt: skip


def test_a_record_is_one_line() -> None:
    assert [line.rstrip() for line in shown(OUTCOME, REFUSED)] == [
        "11-23 00:44:33  ok       bot     manage_service web-01  12 ms  by ann",
        "11-23 00:44:34  refused  claude  ping_host              scope_missing  host=db  count=3",
    ]
    assert shown({"unreadable": "{torn"})[0].split() == ["unreadable", "{torn"]


def test_a_hostile_record_moves_no_cursor_and_takes_no_second_line() -> None:
    hostile = {**REFUSED, "subject": "a\x1b[2Jb\u202ec", "arguments": {"host": "x\r\ny\nz" + "w" * 900}}
    (line,) = shown(hostile, width=100)
    assert line.isprintable() and len(line) <= 100
    assert "a\\x1b[2Jb\\u{202e}c" in line


def test_a_token_that_holds_everything_is_shown_by_the_bundles_name() -> None:
    token = {"id": "1f", "subject": "bot", "scopes": " ".join(SCOPES), "targets": None, "expires": 0, "revoked": False}
    console = Console(file=io.StringIO(), width=80)
    console.print(tokens_table([token]))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "admin" in said and "1970-01-01 00:00" in said and "system:read" not in said
