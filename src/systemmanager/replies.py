"""A Reply as a person reads it on a terminal: one block per target, lists as tables."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape

from systemmanager.fencing import unfenced
from systemmanager.grouping import Group, Grouped, grouped
from systemmanager.plans.showing import lines_of
from systemmanager.shaping import Reply, TargetReply, job_replies
from systemmanager.tables import cell, is_flat, print_data, print_plain, print_table
from systemmanager.terminal import print_plan, table_of

MOST_ROWS = 20
"""Targets that are otherwise than most whose differences are shown one by one; of more, numbers by their ends."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT")


def print_reply(console: Console, reply: Reply) -> None:
    """An answer for a person: one block per target, lists as tables."""
    if reply.error is not None:
        _print_error(console, "", reply.error)
        return
    if reply.job is not None:
        print_data(console, {"job": reply.job})
    if reply.across is not None:
        print_data(console, unfenced(reply.across))
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
        inside = isinstance(value, dict) and is_flat(value)
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
    return " to ".join(f"{cell(values[id], key)} ({id})" for id in ends)


def _print_groups(console: Console, found: Grouped, own: Mapping[str, str]) -> None:
    """What most targets answer alike once, and under it what is otherwise on which; failures last."""
    good = [group for group in found.groups if group.error is None]
    if found.common and good:
        console.print(f"[bold]most of {sum(len(group.targets) for group in good)} targets[/bold]")
        _print_answer(console, found.common)
    if own:
        console.print("\n[bold]each its own[/bold] [dim](--json shows it)[/dim]")
        print_plain(console, own)
    alike = [group for group in good if not group.data and not group.lacks]
    rest = [group for group in good if group.data or group.lacks]
    for group in alike:
        _print_names(console, group, " are so")
    rows = [{"target": ", ".join(group.targets), **group.data, **dict.fromkeys(group.lacks, "-")} for group in rest]
    if all(not isinstance(value, dict | list) and "\n" not in str(value) for row in rows for value in row.values()):
        if rows:
            console.print("\n[bold]but[/bold]" if found.common else "")
            print_table(console, rows)
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
        print_data(console, {name: value for name, value in data.items() if name not in ended})
        console.print()
        print_reply(console, Reply("", "", [one for replies in ended.values() for one in replies]))
    elif data:
        print_data(console, data)


def _print_rehearsal(console: Console, data: Mapping[str, Any]) -> None:
    """A dry run's answer: whether it may run, and what would change."""
    about = {key: value for key, value in data.items() if key not in ("dry_run", "plan", "plan_id")}
    if data["decision"] != "allow":
        print_plain(console, about)
    print_plan(console, lines_of(data["plan"]))
    console.print(f"[dim]systemmanager call apply_plan plan_id={data['plan_id']}[/dim]", soft_wrap=True)


def _print_error(console: Console, target: str, error: Mapping[str, Any]) -> None:
    where = f"{target}: " if target else ""
    console.print(f"[red]{error['code']}[/red]  {escape(where + str(error['message']))}")
    if hint := error.get("hint"):
        console.print(f"[dim]{escape(str(hint))}[/dim]")
    details = dict(error.get("details") or {})
    if stderr := details.pop("stderr", None):
        console.print(escape(str(stderr)), style="dim")
    if details:
        print_data(console, details)


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
