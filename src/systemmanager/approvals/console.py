"""What `systemmanager approvals` shows and does: the whole of each request for a person, JSON for a program."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from systemmanager.approvals import operators
from systemmanager.errors import ApprovalRefused
from systemmanager.plans.showing import lines_of_all
from systemmanager.redaction import visible

STATE_STYLE = {"pending": "yellow", "approved": "green", "denied": "red"}
RISK_STYLE = {"low": "green", "moderate": "yellow", "high": "dark_orange", "critical": "red"}
SOME = 5
"""Targets that a row of the list names; `show` names all."""


def list_all(out: Console, folder: Path, *, everything: bool) -> None:
    """The requests that wait, or all that are kept."""
    found = operators.ask(folder, {"do": "list"})["approvals"]
    chosen = [one for one in found if everything or one["state"] in ("pending", "approved")]
    if not out.is_terminal:
        for one in chosen:
            print(json.dumps(one))
    elif chosen:
        out.print(_table(chosen, time.time()))
    else:
        out.print("[dim]Nothing waits for an approval.[/dim]")


def show(out: Console, folder: Path, id: str) -> None:
    """One request, all of it."""
    _print(out, operators.ask(folder, {"do": "show", "id": id})["approval"])


def answer(out: Console, folder: Path, id: str, *, approve: bool, yes: bool) -> None:
    """Say yes or no to what is shown, and to nothing else. Raises `GatewayError`."""
    asked = operators.ask(folder, {"do": "show", "id": id})["approval"]
    if approve and not yes:
        if not out.is_terminal:
            raise ApprovalRefused("nobody was asked: this is no terminal", hint="Read it first, then give --yes.")
        _print(out, asked)
        if out.input("[bold]Approve it? \\[y/N] [/bold]").strip().lower() not in ("y", "yes"):
            out.print("[dim]Nothing was answered; `systemmanager approvals deny` says no.[/dim]")
            return
    words = {"do": "approve" if approve else "deny", "id": id, "digest": asked["digest"]}
    done = operators.ask(folder, words)["approval"]
    if not out.is_terminal:
        print(json.dumps(done))
        return
    out.print(f"{id} is [{STATE_STYLE.get(done['state'], 'dim')}]{done['state']}[/]")
    if done["state"] == "pending":
        out.print(f"[dim]It needs {done['needed']} different people.[/dim]")


def _table(found: Sequence[Mapping[str, Any]], now: float) -> Table:
    from rich import box

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in ("id", "state", "risk", "asked by", "tool", "targets", "left"):
        table.add_column(column, overflow="fold")
    for one in found:
        question, targets = one["question"], one["question"]["targets"]
        more = f" and {len(targets) - SOME} more" if len(targets) > SOME else ""
        table.add_row(
            one["id"],
            f"[{STATE_STYLE.get(one['state'], 'dim')}]{one['state']}[/]",
            f"[{RISK_STYLE.get(question['risk'], 'red')}]{escape(question['risk'])}[/]",
            escape(visible(question["subject"])),
            escape(question["tool"]),
            escape(visible(", ".join(targets[:SOME])) + more),
            _left(one, now),
        )
    return table


def _left(asked: Mapping[str, Any], now: float) -> str:
    left = asked["expires"] - now
    return "-" if left <= 0 else f"{left // 60:.0f} min" if left >= 60 else f"{left:.0f} s"


def _print(out: Console, asked: Mapping[str, Any]) -> None:
    """All that a yes would be to: nothing cut, nothing hidden; what is not ASCII stands there as its escape."""
    if not out.is_terminal:
        print(json.dumps(asked))
        return
    question = asked["question"]
    risk, state = question["risk"], asked["state"]
    out.print(f"\n[{RISK_STYLE.get(risk, 'red')}]{escape(risk)}[/]  [bold]{escape(question['tool'])}[/bold]", end="  ")
    out.print(f"[{STATE_STYLE.get(state, 'dim')}]{state}[/], {_left(asked, time.time())} left")
    rows = [("asked by", f"{question['subject']} ({question['kind']})"), ("targets", ", ".join(question["targets"]))]
    rows += [(name, json.dumps(value)) for name, value in question["arguments"].items()]
    if question.get("plan") is not None:
        rows += [("plan" if not place else "", line) for place, line in enumerate(lines_of_all(question["plan"]))]
    rows.append(("needs", "one person" if asked["needed"] == 1 else f"{asked['needed']} different people"))
    rows += [
        ("said yes" if one["approved"] else "said no", f"{one['person']} ({one['channel']})")
        for one in asked["answers"]
    ]
    rows += [("policy", question["policy"]), ("registry", question["registry"]), ("digest", asked["digest"])]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        plain = visible(text).encode("ascii", "backslashreplace").decode()
        out.print(f"  [bold]{escape(name.ljust(width))}[/bold]  {escape(plain)}", soft_wrap=True)
    out.print()
