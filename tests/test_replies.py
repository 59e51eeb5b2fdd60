"""What a person sees of an answer: short, aligned, within the terminal's width."""

import io
from typing import Any

import pytest
from rich.console import Console

import systemmanager.operations  # noqa: F401  fills the catalogue
from systemmanager import replies
from systemmanager.operation import CATALOGUE
from systemmanager.shaping import Reply, TargetReply
from systemmanager.tables import human_time
from systemmanager.terminal import PIPE_WIDTH, console, print_tool, print_tools


def shown(*data: dict[str, Any], width: int = 80) -> list[str]:
    screen = Console(file=io.StringIO(), width=width, highlight=False)
    answers = [TargetReply(f"web-0{place}", data=one) for place, one in enumerate(data, 1)]
    replies.print_reply(screen, Reply("c1", "get_system_status", answers))
    return [line.rstrip() for line in screen.file.getvalue().splitlines()]  # type: ignore[attr-defined]


DISKS = [{"mount": "/", "total": 2048, "percent": 22.9}, {"mount": "/srv", "total": 3 * 2**30, "percent": 5.0}]


def test_values_have_their_units_and_an_object_stands_on_one_line() -> None:
    assert shown(
        {"hostname": "web", "uptime": 93780, "cpu": {"percent": 92.9, "load": [1.5, 2.0]}, "disks": DISKS}
    ) == [
        "hostname  web",
        "uptime    1 d 2 h",
        "cpu       percent 92.9 %  load 1.5, 2.0",
        "",
        "disks",
        "mount     total   percent",
        "─────────────────────────",
        "/       2.0 KiB    22.9 %",
        "/srv    3.0 GiB     5.0 %",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3661, "1 h 1 min"), (86400, "1 d")]
)
def test_a_time_is_told_in_its_two_largest_units(seconds: int, words: str) -> None:
    assert human_time(seconds) == words


def test_a_failure_says_what_is_known_of_it() -> None:
    details = {
        "problem": "is unhealthy: [bold]no",
        "likely_cause": {"cause": "connection_refused", "confidence": 0.86},
        "logs": "<<untrusted 0123456789ab>>\nstarting\nno database [x]\n<<end 0123456789ab>>",
    }
    error = {"code": "rolled_back", "message": "web is unhealthy", "hint": "It is back.", "details": details}
    screen = Console(file=io.StringIO(), width=80, highlight=False)
    replies.print_reply(screen, Reply("c1", "update_stack", [TargetReply("host", error=error)]))
    lines = [line.rstrip() for line in screen.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines == [
        "rolled_back  host: web is unhealthy",
        "It is back.",
        "problem       is unhealthy: [bold]no",
        "likely_cause  cause connection_refused  confidence 0.86",
        "starting",
        "no database [x]",
    ]


def test_a_cut_list_says_how_to_go_on() -> None:
    lines = shown({"total": 103, "truncated": True, "next": "2", "disks": DISKS})
    assert lines[0] == "disks (2 of 103; cursor=2 goes on)"


def test_what_is_too_wide_stands_under_its_row() -> None:
    rows = [{"pid": 7, "command": "a" * 100, "name": "cron"}, {"pid": 1234, "command": "b", "name": "cat"}]
    assert shown({"processes": rows}) == [
        "processes",
        " pid   name",
        "───────────",
        "   7   cron",
        f"    command  {'a' * 67}",
        f"             {'a' * 33}",
        "1234   cat",
        "    command  b",
    ]
    assert len(shown({"processes": rows}, width=130)) == 5  # side by side


def test_a_name_is_never_folded_and_other_text_only_a_little() -> None:
    sent = [{"name": "br-" + "f" * 24, **{f"bytes_{place}": 10**9 for place in range(6)}}]
    assert shown({"interfaces": sent})[3].split()[0] == "br-" + "f" * 24
    package = [{"name": "a" * 30, "old": "1" * 22, "new": "2" * 22, "security": True}]
    name, old, new, security = shown({"packages": package})[3].split()
    assert (name, security) == ("a" * 30, "yes") and 14 < len(old) < 22 and 14 < len(new) < 22


def test_rows_that_say_nothing_are_still_rows() -> None:
    assert shown({"mounts": [{"busy": False}, {"busy": False}]})[1:] == ["busy", "────", "  no", "  no"]
    assert shown({"mounts": [{}]})[0] == "mounts"


def test_rows_that_are_wide_all_over_are_shown_one_after_the_other() -> None:
    wide = [{"hash": "a" * 64, "other": "b" * 50, "subject": "c" * 60}, {"hash": "d" * 64, "other": "e"}]
    assert shown({"records": wide}) == [
        "records",
        f"hash     {'a' * 64}",
        f"other    {'b' * 50}",
        f"subject  {'c' * 60}",
        "",
        f"hash   {'d' * 64}",
        "other  e",
    ]


def test_targets_are_told_apart() -> None:
    assert shown({"a": 1}, {"a": 2}) == ["web-01", "a  1", "", "web-02", "a  2"]


def test_a_pipe_gets_long_lines_without_blanks_at_their_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    screen = console()
    assert screen.width == PIPE_WIDTH
    replies.print_reply(screen, Reply("c1", "x", [TargetReply("a", data={"disks": [*DISKS, {"mount": "y" * 150}]})]))
    lines = capsys.readouterr().out.splitlines()
    assert all(line == line.rstrip() for line in lines) and any("y" * 150 in line for line in lines)


def test_each_tool_has_a_line_and_a_page_within_the_terminals_width() -> None:
    screen = Console(file=io.StringIO(), width=80, highlight=False)
    print_tools(screen, list(CATALOGUE.values()))
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[0] for line in lines] == list(CATALOGUE)
    assert max(map(len, lines)) <= 80
    page = Console(file=io.StringIO(), width=80, highlight=False)
    print_tool(page, CATALOGUE["manage_container"])
    said = page.file.getvalue()  # type: ignore[attr-defined]
    assert "start|stop|restart|logs" in said and "action=logs: " in said and "container:read" in said
    assert all(name in said for name in ("name_or_id", "lines", "targets", "dry_run"))


def test_a_dry_run_is_a_diff_coloured_on_a_terminal_only() -> None:
    changes = [{"what": "package curl", "before": "7.1", "after": "7.2"}, {"what": "package old", "before": "0.9"}]
    data = {"dry_run": True, "decision": "allow", "plan_id": "ab", "plan": {"changes": changes, "no_inverse": "None."}}
    lines = ["~ package curl: 7.1 -> 7.2", "- package old: 0.9", "  no way back: None."]
    for terminal in (False, True):
        screen = io.StringIO()
        out = Console(
            file=screen, force_terminal=terminal, color_system="standard" if terminal else None, highlight=False
        )
        replies.print_reply(out, Reply("c", "t", [TargetReply("web-01", data)]))
        seen = screen.getvalue()
        assert all(line in seen for line in lines) and "apply_plan plan_id=ab" in seen
        assert ("\x1b[31m- package old" in seen) is terminal
