"""What a person sees on a terminal: tables, the first screen of `make run`, questions before critical calls."""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, Any, cast

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from systemmanager.arguments import call_model
from systemmanager.operation import Operation
from systemmanager.plans.showing import COLOURS, lines_of_all
from systemmanager.policyfile import Policy
from systemmanager.redaction import visible
from systemmanager.registry import Registry
from systemmanager.request import Request
from systemmanager.scopes import BUNDLES

PIPE_WIDTH = 200
"""Columns of a table that goes into a pipe or a file."""

RISK_STYLE = {"low": "green", "moderate": "yellow", "high": "dark_orange", "critical": "red"}


def console(*, stderr: bool = False) -> Console:
    """A terminal as wide as it is; a pipe gets long lines, without blanks at their ends."""
    stream = cast(IO[str], _Lines(stderr))
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False)


class _Lines:
    """Standard output or standard error as they are when something is written."""

    def __init__(self, stderr: bool) -> None:
        self._name = "stderr" if stderr else "stdout"

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys, self._name), name)

    def write(self, text: str) -> int:
        stream: IO[str] = getattr(sys, self._name)
        return stream.write(text if stream.isatty() else re.sub(r" +(?=\n)", "", text))


def table_of(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def targets_table(registry: Registry) -> Table:
    """A registry as `systemmanager check` shows it; a target that can't be used is red and has a `!`."""
    table = table_of("target", "reached by", "offers", "labels")
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    for id, target in registry.targets.items():
        metadata = target.metadata
        labels = [*metadata.tags, *filter(None, (metadata.environment, metadata.role))]
        name = f"[red]{id} ![/red]" if id in registry.faults else id
        table.add_row(name, escape(_address(target)), _grouped(target.offers), " ".join(labels))
    return table


def grants_table(policy: Policy, registry: Registry) -> Table:
    """All grants of a policy, and on how many targets each one holds."""
    table = table_of("granted to", "scopes", "on", "targets")
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


def print_tools(console: Console, operations: Sequence[Operation]) -> None:
    """All tools, a line each; what the line is too short for is on the tool's own page."""
    width = max(len(operation.name) for operation in operations)
    for operation in operations:
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(operation.name.ljust(width), "bold").append("  ")
        line.append(_risk(operation).ljust(len("critical, asks")), RISK_STYLE[operation.access.risk])
        console.print(line.append(f"  {summary(operation)}"), no_wrap=True, overflow="ellipsis", crop=True)


def _risk(operation: Operation) -> str:
    return operation.access.risk + (", asks" if operation.access.approval else "")


def print_tool(console: Console, operation: Operation) -> None:
    """One tool: what it does, what it needs, and its parameters."""
    needs = " or ".join(operation.access.scopes) or "no scope"
    console.print(f"[bold]{operation.name}[/bold]  [{RISK_STYLE[operation.access.risk]}]{_risk(operation)}[/]  {needs}")
    for value, access in operation.cases.items():
        console.print(f"  {operation.by}={value}: {access.risk}, {' or '.join(access.scopes)}", highlight=False)
    console.print(f"\n{escape(operation.description)}\n")
    schema = call_model(operation).model_json_schema()
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, field in schema["properties"].items():
        given = "required" if name in schema.get("required", ()) else json.dumps(field.get("default"))
        given = "" if given == "null" else given
        table.add_row(f"[bold]{name}[/bold]", escape(_kind(field)), given, escape(field.get("description", "")))
    console.print(table)


def _kind(field: Mapping[str, Any]) -> str:
    """A parameter's type in a word, its values where they are few."""
    if "enum" in field:
        return "|".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if "anyOf" in field:
        kinds = (_kind(one) for one in field["anyOf"] if one.get("type") != "null")
        return " or ".join(dict.fromkeys(kinds))
    if field.get("type") == "array":
        return f"{_kind(field['items'])}, ..."
    return _KINDS.get(str(field.get("type")), "value")


_KINDS = {"string": "text", "integer": "number", "number": "number", "boolean": "true|false", "object": "object"}


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


def print_question(console: Console, requests: Sequence[Request]) -> None:
    """What a person is asked to approve: all of it, nothing cut."""
    first = requests[0]
    risk = first.access.risk
    console.print(f"\n[{RISK_STYLE[risk]}]{risk}[/]  [bold]{first.operation.name}[/bold]")
    console.print(escape(f"  arguments  {json.dumps(dict(first.arguments), default=str)}"), soft_wrap=True)
    console.print(escape(f"  targets    {', '.join(request.target.id for request in requests)}"), soft_wrap=True)
    if first.plan is not None:
        print_plan(console, lines_of_all(first.plan))


def print_plan(console: Console, lines: Iterable[str]) -> None:
    """What would change, as a diff."""
    for line in lines:
        console.print(Text(visible(line), COLOURS.get(line[:1], "")), soft_wrap=True)


def tokens_table(tokens: Iterable[Mapping[str, Any]]) -> Table:
    """What was minted, by id; the tokens themselves are kept nowhere."""
    table = table_of("id", "agent", "scopes", "targets", "expires (UTC)")
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
