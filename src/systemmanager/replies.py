"""A Reply as a person reads it on a terminal: one block per target, lists as tables."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from systemmanager.fencing import unfenced
from systemmanager.grouping import Group, Grouped, grouped
from systemmanager.plans.showing import lines_of
from systemmanager.shaping import Reply, TargetReply, job_replies
from systemmanager.terminal import print_plan, table_of

MOST_ROWS = 20
"""Targets that are otherwise than most whose differences are shown one by one; of more, numbers by their ends."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT")

FOLDED, LEFT = 0.3, 0.7
"""How much of the columns that can be folded may be lacking; or of the terminal's width what all but the last may take,
which is then folded."""
GAP, INDENT, SHORT = 3, 4, 24
"""Blanks between two columns and before what stands under a row, and what is short enough there to share a line."""


def print_reply(console: Console, reply: Reply) -> None:
    """An answer for a person: one block per target, lists as tables."""
    if reply.error is not None:
        _print_error(console, "", reply.error)
        return
    if reply.job is not None:
        _print_data(console, {"job": reply.job})
    if reply.across is not None:
        _print_data(console, unfenced(reply.across))
        console.print()
    for result in reply.results:
        result.data, result.error = unfenced(result.data), unfenced(result.error)
    if (found := grouped(reply.results)) is not None:
        own: Mapping[str, str] = {}
        if sum(bool(group.data) for group in found.groups) > MOST_ROWS:
            results, own = _without_own(reply.results)
            found = grouped(results) or found
        _print_groups(console, found, own)
        return
    for place, result in enumerate(reply.results):
        if len(reply.results) > 1:
            console.print("\n" * bool(place) + f"[bold]{escape(result.target)}[/bold]")
        if result.error is not None:
            _print_error(console, result.target, result.error)
        else:
            _print_answer(console, result.data or {})


def _without_own(results: Sequence[TargetReply]) -> tuple[list[TargetReply], dict[str, str]]:
    """The answers of many without what nearly each has as its own, such as a number or an hour; the ends of that."""
    good = {one.target: _flat(one.data) for one in results if one.error is None and one.data is not None}
    own: dict[str, str] = {}
    for name in dict.fromkeys(name for data in good.values() for name in data):
        values = {id: data[name] for id, data in good.items() if name in data}
        if not all(_is_short(value) for value in values.values()):
            continue
        counts = Counter(values.values())
        if len(counts) > MOST_ROWS and 2 * max(counts.values()) <= len(good):
            own[name] = _ends(values, name.rpartition(" ")[2])
    rest = {id: {name: value for name, value in data.items() if name not in own} for id, data in good.items()}
    return [replace(one, data=rest.get(one.target, one.data)) for one in results], own


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """With the fields of flat objects as its own."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        inside = isinstance(value, dict) and _is_flat(value)
        flat |= {f"{name} {key}": one for key, one in value.items()} if inside else {name: value}
    return flat


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 100 and "\n" not in value)


def _ends(values: Mapping[str, Any], key: str) -> str:
    """The least and the most of numbers and times, and where they are; of other texts how many there are."""
    numbers = all(isinstance(value, int | float) for value in values.values())
    if not numbers and not all(_TIME.match(str(value)) for value in values.values()):
        return f"{len(set(values.values()))} different"
    ends = (pick(values, key=lambda id: values[id] if numbers else str(values[id])) for pick in (min, max))
    return " to ".join(f"{_cell(values[id], key)} ({id})" for id in ends)


def _print_groups(console: Console, found: Grouped, own: Mapping[str, str]) -> None:
    """What most targets answer alike once, and under it what is otherwise on which; failures last."""
    good = [group for group in found.groups if group.error is None]
    if found.common and good:
        console.print(f"[bold]most of {sum(len(group.targets) for group in good)} targets[/bold]")
        _print_answer(console, found.common)
    if own:
        console.print("\n[bold]each its own[/bold] [dim](--json shows it)[/dim]")
        _print_plain(console, own)
    alike = [group for group in good if not group.data and not group.lacks]
    rest = [group for group in good if group.data or group.lacks]
    for group in alike:
        _print_names(console, group, " are so")
    rows = [{"target": ", ".join(group.targets), **group.data, **dict.fromkeys(group.lacks, "-")} for group in rest]
    if all(not isinstance(value, dict | list) and "\n" not in str(value) for row in rows for value in row.values()):
        if rows:
            console.print("\n[bold]but[/bold]" if found.common else "")
            _print_table(console, rows)
    else:
        for group in rest:
            _print_names(console, group, ", but:" if found.common else "")
            _print_answer(console, group.data | dict.fromkeys(group.lacks, "-"))
    for group in found.groups:
        if group.error is not None:
            _print_names(console, group, "")
            _print_error(console, "", group.error)


def _print_names(console: Console, group: Group, rest: str) -> None:
    count = f" [dim]({len(group.targets)} targets)[/dim]" if len(group.targets) > 3 else ""
    console.print(f"\n[bold]{escape(', '.join(group.targets))}[/bold]{count}{rest}")


def _print_answer(console: Console, data: Mapping[str, Any]) -> None:
    if data.get("dry_run") and "plan" in data and "decision" in data:
        _print_rehearsal(console, data)
    elif "job_id" in data and (ended := job_replies(data)):
        _print_data(console, {name: value for name, value in data.items() if name not in ended})
        console.print()
        print_reply(console, Reply("", "", [one for replies in ended.values() for one in replies]))
    elif data:
        _print_data(console, data)


def _print_rehearsal(console: Console, data: Mapping[str, Any]) -> None:
    """A dry run's answer: whether it may run, and what would change."""
    about = {key: value for key, value in data.items() if key not in ("dry_run", "plan", "plan_id")}
    if data["decision"] != "allow":
        _print_plain(console, about)
    print_plan(console, lines_of(data["plan"]))
    console.print(f"[dim]systemmanager call apply_plan plan_id={data['plan_id']}[/dim]", soft_wrap=True)


def _print_error(console: Console, target: str, error: Mapping[str, Any]) -> None:
    where = f"{target}: " if target else ""
    console.print(f"[red]{error['code']}[/red]  {escape(where + str(error['message']))}")
    if hint := error.get("hint"):
        console.print(f"[dim]{escape(str(hint))}[/dim]")
    if stderr := (error.get("details") or {}).get("stderr"):
        console.print(escape(str(stderr)), style="dim")


def _print_data(console: Console, data: Mapping[str, Any]) -> None:
    texts = {key: value for key, value in data.items() if isinstance(value, str) and "\n" in value}
    tables = {key: value for key, value in data.items() if _is_table(value)}
    deep = {key: value for key, value in data.items() if isinstance(value, dict) and not _is_flat(value)}
    paged = len(tables) == 1 and not data.keys().isdisjoint(("total", "next"))
    plain = [key for key in data if key not in texts and key not in tables and key not in deep]
    values = {key: data[key] for key in plain if not (paged and key in ("total", "truncated", "next"))}
    _print_plain(console, values)
    for key, value in deep.items():
        console.print(f"\n[bold]{escape(key)}[/bold]")
        _print_data(console, value)
    for place, (key, rows) in enumerate(tables.items()):
        gap = "\n" * bool(values or deep or place)
        console.print(f"{gap}[bold]{escape(key)}[/bold]" + (_page(data, rows) if paged else ""))
        _print_table(console, rows)
    for text in texts.values():
        console.print(text, markup=False, soft_wrap=True)


def _is_flat(value: Any) -> bool:
    """Whether it fits behind a name: no object and no list of objects in it."""
    inside = list(value.values()) if isinstance(value, dict) else [value]
    return not any(isinstance(one, dict) or _is_table(one) for one in inside)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _page(data: Mapping[str, Any], rows: Sequence[Any]) -> str:
    if len(rows) == data.get("total"):
        return ""
    shown = f"{len(rows)} of {data['total']}" if "total" in data else f"the newest {len(rows)}"
    more = f"; cursor={data['next']} goes on" if data.get("next") else ""
    return f" [dim]({shown}{escape(more)})[/dim]"


def _print_plain(console: Console, values: Mapping[str, Any], indent: int = 0) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in values.items():
        if isinstance(value, dict):
            shown = "  ".join(f"{name} {_cell(item, name)}" for name, item in value.items())
        else:
            shown = _cell(value, key)
        table.add_row(f"[bold]{escape(key)}[/bold]", escape(shown or "-"))
    if values:
        console.print(Padding(table, (0, 0, 0, indent)))


def _print_table(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows side by side; what is too wide for that stands under its row, and rows that are wide all over are blocks."""
    every = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in every if any(row.get(name) for row in rows)] or every or [""]
    lines = [[_cell(row.get(name, ""), name) for name in columns] for row in rows]
    widths = {name: max(len(line[place]) for line in [columns, *lines]) for place, name in enumerate(columns)}
    firm = {name for name in columns if name == columns[0] or _is_number(rows, name)}
    if _fits(console.width, widths, firm):
        console.print(_table_of(rows, columns))
        return
    beside = _beside(console.width, widths)
    if len(beside) < 2:
        for place, row in enumerate(rows):
            console.print("\n" * bool(place), end="")
            _print_plain(console, {name: row[name] for name in columns if name in row})
        return
    for place, row in enumerate(rows):
        table = _table_of([row], beside)
        table.show_header = place == 0
        for column, name in zip(table.columns, beside, strict=True):
            column.min_width = widths[name]
        console.print(table)
        below = [name for name in columns if name not in beside and row.get(name)]
        short = [
            f"[bold]{escape(name)}[/bold] {escape(_cell(row[name], name))}" for name in below if widths[name] <= SHORT
        ]
        if short:
            console.print(Padding("  ".join(short), (0, 0, 0, INDENT)))
        _print_plain(console, {name: row[name] for name in below if widths[name] > SHORT}, INDENT)


def _table_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    table = table_of(*columns)
    table.columns[0].no_wrap = True
    for column, name in zip(table.columns, columns, strict=True):
        if _is_number(rows, name):
            column.justify, column.no_wrap = "right", True
    for row in rows:
        table.add_row(*(escape(_cell(row.get(name, ""), name)) for name in columns))
    return table


def _is_number(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return all(isinstance(row.get(name, 0), int | float) for row in rows)


def _fits(width: int, columns: Mapping[str, int], firm: Collection[str]) -> bool:
    """Whether rows can stand side by side: with little folding, or with folding in the last column alone."""
    *most, last = (wanted + GAP for wanted in columns.values())
    loose = sum(wanted for name, wanted in columns.items() if name not in firm)
    return sum(most) + last - GAP - width <= FOLDED * loose or sum(most) <= LEFT * width


def _beside(width: int, columns: Mapping[str, int]) -> list[str]:
    """The columns that fit side by side; those that are told first go first."""
    chosen: list[str] = []
    for name, wanted in columns.items():
        if wanted + GAP <= width + GAP:
            chosen.append(name)
            width -= wanted + GAP
    return chosen


def _cell(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_cell(item, key) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={_cell(item, name)}" for name, item in value.items())
    if isinstance(value, int) and key in _BYTES:
        return human_bytes(value)
    if isinstance(value, int) and key == "uptime":
        return human_time(value)
    return f"{value} %" if key == "percent" else str(value)


_BYTES = {
    "memory",
    "total",
    "free",
    "available",
    "rss",
    "size",
    "swap_total",
    "swap_used",
    "bytes_sent",
    "bytes_received",
}


def human_bytes(count: int) -> str:
    """1536 as `1.5 KiB`; small numbers stay as they are."""
    if count < 1024:
        return str(count)
    power = min((count.bit_length() - 1) // 10, 5)
    return f"{count / 1024**power:.1f} {'KMGTP'[power - 1]}iB"


def human_time(seconds: int) -> str:
    """93780 as `1 d 2 h`: the two largest units that count."""
    parts = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count or first == len(parts) - 1)


def print_explanation(console: Console, reply: Reply) -> None:
    """Every rule's verdict, and what would allow the call."""
    data = reply.results[0].data if reply.results and reply.results[0].data else None
    if data is None:
        print_reply(console, reply)
        return
    for result in data["results"]:
        console.print(
            f"[bold]{escape(data['tool'])}[/bold] on [bold]{escape(result['target'])}[/bold]: {result['answer']}"
        )
        table = table_of("rule", "verdict", "why")
        for verdict in result["verdicts"]:
            style = {"allow": "green", "ask": "yellow"}.get(verdict["answer"], "red")
            table.add_row(verdict["rule"], f"[{style}]{verdict['answer']}[/]", escape(verdict["reason"]))
        console.print(table)
        for grant in result.get("grant", ()):
            console.print(f"It would need {escape(grant)}.")
