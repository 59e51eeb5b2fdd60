"""What a person sees on a terminal: tables, the first screen of `make run`, questions before critical calls."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from systemmanager.fencing import unfenced
from systemmanager.operation import Operation
from systemmanager.policyfile import Policy
from systemmanager.redaction import visible
from systemmanager.registry import Registry
from systemmanager.request import Request
from systemmanager.scopes import BUNDLES
from systemmanager.shaping import Reply

RISK_STYLE = {"low": "green", "moderate": "yellow", "high": "dark_orange", "critical": "red"}


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def targets_table(registry: Registry) -> Table:
    """A registry as `systemmanager check` shows it; a target that can't be used is red and has a `!`."""
    table = _table("target", "reached by", "offers", "labels")
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    for id, target in registry.targets.items():
        metadata = target.metadata
        labels = [*metadata.tags, *filter(None, (metadata.environment, metadata.role))]
        name = f"[red]{id} ![/red]" if id in registry.faults else id
        table.add_row(name, escape(_address(target)), _grouped(target.offers), " ".join(labels))
    return table


def grants_table(policy: Policy, registry: Registry) -> Table:
    """All grants of a policy, and on how many targets each one holds."""
    table = _table("granted to", "scopes", "on", "targets")
    for rule in policy.grants:
        names = [*sorted(rule.subjects), *(f"group {name}" for name in sorted(rule.groups)), *sorted(rule.tags)]
        held = str(len(registry.granted(rule.grant)))
        table.add_row(escape("\n".join(names)), _grouped(rule.grant.scopes), escape(rule.grant.targets or "*"), held)
    return table


def _grouped(scopes: Iterable[str]) -> str:
    """`container:read container:write` as `container:read,write`; a whole bundle by its name."""
    held = frozenset(scopes)
    if named := next((name for name, bundle in BUNDLES.items() if bundle == held), None):
        return named
    areas: dict[str, list[str]] = {}
    for scope in sorted(held):
        area, _, verb = scope.partition(":")
        areas.setdefault(area, []).append(verb)
    return "\n".join(f"{area}:{','.join(verbs)}" for area, verbs in areas.items())


def _address(target: Any) -> str:
    connection = target.connection
    if target.executor == "ssh":
        port = "" if connection.port == 22 else f":{connection.port}"
        return f"ssh {connection.username}@{connection.host}{port}"
    if target.executor == "docker":
        return f"docker {connection.socket_path or connection.host}"
    return f"http {connection.base_url}" if target.executor == "http" else "local"


def tools_table(operations: Iterable[Operation]) -> Table:
    """All tools with what they need."""
    table = _table("tool", "risk", "scope", "what it does")
    table.columns[0].no_wrap = True
    for operation in operations:
        risk = operation.access.risk
        needs = f"[{RISK_STYLE[risk]}]{risk}[/]" + (" + approval" if operation.access.approval else "")
        table.add_row(operation.name, needs, " or ".join(operation.access.scopes) or "-", summary(operation))
    return table


def summary(operation: Operation) -> str:
    """The first sentence of a description."""
    return re.split(r"(?<=[.!?])\s", operation.description.replace("\n", " "), maxsplit=1)[0]


def announce(console: Console, url: str, token: str, scopes: str) -> None:
    """The first screen: where the gateway is, a token, and what to paste into an MCP client."""
    client = {"type": "http", "url": url, "headers": {"Authorization": f"Bearer {token}"}}
    console.print(f"\n[bold green]SystemManager is ready[/bold green] at [bold]{url}[/bold]\n")
    console.print(f"Token ({scopes}):\n{token}\n", soft_wrap=True)
    console.print("Paste into your MCP client:")
    block = json.dumps({"mcpServers": {"systemmanager": client}}, indent=2)
    console.print(block, soft_wrap=True, markup=False)
    console.print("\n[dim]Then ask: how is this machine? Ctrl-C stops the gateway.[/dim]\n")


def print_reply(console: Console, reply: Reply) -> None:
    """An answer for a person: one block per target, lists as tables."""
    if reply.error is not None:
        _print_error(console, "", reply.error)
        return
    for result in reply.results:
        result.data, result.error = unfenced(result.data), unfenced(result.error)
        if len(reply.results) > 1:
            console.print(f"[bold]{escape(result.target)}[/bold]")
        if result.error is not None:
            _print_error(console, result.target, result.error)
        else:
            _print_data(console, result.data or {})


def _print_error(console: Console, target: str, error: Mapping[str, Any]) -> None:
    where = f"{target}: " if target else ""
    console.print(f"[red]{error['code']}[/red]  {escape(where + str(error['message']))}")
    if hint := error.get("hint"):
        console.print(f"[dim]{escape(str(hint))}[/dim]")
    if stderr := (error.get("details") or {}).get("stderr"):
        console.print(escape(str(stderr)), style="dim")


def _print_data(console: Console, data: Mapping[str, Any]) -> None:
    blocks = {key: value for key, value in data.items() if isinstance(value, str) and "\n" in value}
    plain = {key: value for key, value in data.items() if not isinstance(value, list | dict) and key not in blocks}
    if plain:
        table = Table(box=None, show_header=False, pad_edge=False)
        for key, value in plain.items():
            table.add_row(f"[bold]{escape(key)}[/bold]", escape(_cell(value, key)))
        console.print(table)
    for key, value in data.items():
        if isinstance(value, dict):
            console.print(f"[bold]{escape(key)}[/bold]")
            _print_data(console, value)
        elif isinstance(value, list):
            _print_list(console, key, value)
    for text in blocks.values():
        console.print(text, markup=False, soft_wrap=True)
    console.print()


def _print_list(console: Console, key: str, rows: Sequence[Any]) -> None:
    if not rows or not isinstance(rows[0], dict):
        console.print(f"[bold]{escape(key)}[/bold] {escape(', '.join(_cell(row, key) for row in rows) or '-')}")
        return
    columns = list(dict.fromkeys(name for row in rows for name in row if any(one.get(name) for one in rows)))
    table = _table(*columns)
    for row in rows:
        table.add_row(*(escape(_cell(row.get(name, ""), name)) for name in columns))
    console.print(table)


def _cell(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_cell(item, key) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={_cell(item, name)}" for name, item in value.items())
    if isinstance(value, int) and key in _BYTES:
        return human_bytes(value)
    return str(value)


_BYTES = {"total", "free", "available", "rss", "size", "swap_total", "swap_used", "bytes_sent", "bytes_received"}


def human_bytes(count: int) -> str:
    """1536 as `1.5 KiB`; small numbers stay as they are."""
    if count < 1024:
        return str(count)
    power = min((count.bit_length() - 1) // 10, 5)
    return f"{count / 1024**power:.1f} {'KMGTP'[power - 1]}iB"


def print_question(console: Console, requests: Sequence[Request]) -> None:
    """What a person is asked to approve: all of it, nothing cut."""
    first = requests[0]
    risk = first.access.risk
    console.print(f"\n[{RISK_STYLE[risk]}]{risk}[/]  [bold]{first.operation.name}[/bold]")
    console.print(escape(f"  arguments  {json.dumps(dict(first.arguments), default=str)}"), soft_wrap=True)
    console.print(escape(f"  targets    {', '.join(request.target.id for request in requests)}"), soft_wrap=True)


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
        table = _table("rule", "verdict", "why")
        for verdict in result["verdicts"]:
            style = {"allow": "green", "ask": "yellow"}.get(verdict["answer"], "red")
            table.add_row(verdict["rule"], f"[{style}]{verdict['answer']}[/]", escape(verdict["reason"]))
        console.print(table)
        for grant in result.get("grant", ()):
            console.print(f"It would need {escape(grant)}.")


def tokens_table(tokens: Iterable[Mapping[str, Any]]) -> Table:
    """What was minted, by id; the tokens themselves are kept nowhere."""
    table = _table("id", "agent", "scopes", "targets", "expires (UTC)")
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    for token in tokens:
        expires = f"{datetime.fromtimestamp(token['expires'], UTC):%Y-%m-%d %H:%M}"
        state = "[red]revoked[/red]" if token["revoked"] else expires
        scopes = _grouped(token["scopes"].split())
        table.add_row(token["id"], escape(token["subject"]), scopes, escape(token["targets"] or "*"), state)
    return table


def print_audit(console: Console, records: Iterable[Mapping[str, Any]]) -> None:
    """One line per record, cut at the terminal's width: `audit query` through a pipe gives all of it."""
    rows = [[visible(cell).replace("\n", " ") for cell in _audit_cells(record)] for record in records]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for row in rows:
        when, phase, who, what, rest = row
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(when.ljust(widths[0]), "dim").append("  ")
        line.append(phase.ljust(widths[1]), _PHASE_STYLE.get(phase, "red")).append("  ")
        line.append(who.ljust(widths[2])).append("  ").append(what.ljust(widths[3]), "bold").append(f"  {rest}")
        console.print(line, no_wrap=True, overflow="ellipsis", crop=True)


_PHASE_STYLE = {"ok": "green", "intent": "dim", "event": "blue"}


def _audit_cells(record: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """When (UTC), how it went, who, what and where, and the rest."""
    if "time" not in record:
        return "", "unreadable", "", str(record.get("unreadable", ""))[:60], ""
    when = str(record["time"])[5:19].replace("T", " ")
    ended = record.get("phase") == "outcome"
    went = str(record.get("code", "outcome")) if ended else str(record.get("phase", ""))
    what = " ".join(filter(None, (str(record.get("tool", "")), str(record.get("target") or ""))))
    rest = [] if ended or "code" not in record else [str(record["code"])]
    rest += [f"{record['elapsed_ms']} ms"] if "elapsed_ms" in record else []
    rest += [f"by {record['approved_by']}"] if "approved_by" in record else []
    arguments = record.get("arguments") or {}
    rest += [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in arguments.items()]
    return when, went, str(record.get("subject", "")), what, "  ".join(rest)
