"""Data as a person reads it on a terminal: values by name, rows as tables; nothing is cut off."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from systemmanager.terminal import table_of

FOLDED, LEFT = 0.3, 0.7
"""How much of the columns that can be folded may be lacking; or of the terminal's width what all but the last may take,
which is then folded."""
GAP, INDENT, SHORT = 3, 4, 24
"""Blanks between two columns and before what stands under a row, and what is short enough there to share a line."""


def print_data(console: Console, data: Mapping[str, Any]) -> None:
    texts = {key: value for key, value in data.items() if isinstance(value, str) and "\n" in value}
    tables = {key: value for key, value in data.items() if _is_table(value)}
    deep = {key: value for key, value in data.items() if isinstance(value, dict) and not is_flat(value)}
    paged = len(tables) == 1 and not data.keys().isdisjoint(("total", "next"))
    plain = [key for key in data if key not in texts and key not in tables and key not in deep]
    values = {key: data[key] for key in plain if not (paged and key in ("total", "truncated", "next"))}
    print_plain(console, values)
    for key, value in deep.items():
        console.print(f"\n[bold]{escape(key)}[/bold]")
        print_data(console, value)
    for place, (key, rows) in enumerate(tables.items()):
        gap = "\n" * bool(values or deep or place)
        console.print(f"{gap}[bold]{escape(key)}[/bold]" + (_page(data, rows) if paged else ""))
        print_table(console, rows)
    for text in texts.values():
        console.print(text, markup=False, soft_wrap=True)


def is_flat(value: Any) -> bool:
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


def print_plain(console: Console, values: Mapping[str, Any], indent: int = 0) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in values.items():
        if isinstance(value, dict):
            shown = "  ".join(f"{name} {cell(item, name)}" for name, item in value.items())
        else:
            shown = cell(value, key)
        table.add_row(f"[bold]{escape(key)}[/bold]", escape(shown or "-"))
    if values:
        console.print(Padding(table, (0, 0, 0, indent)))


def print_table(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows side by side; what is too wide for that stands under its row, and rows that are wide all over are blocks."""
    every = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in every if any(row.get(name) for row in rows)] or every or [""]
    lines = [[cell(row.get(name, ""), name) for name in columns] for row in rows]
    widths = {name: max(len(line[place]) for line in [columns, *lines]) for place, name in enumerate(columns)}
    firm = {name for name in columns if name == columns[0] or _is_number(rows, name)}
    if _fits(console.width, widths, firm):
        console.print(_table_of(rows, columns))
        return
    beside = _beside(console.width, widths)
    if len(beside) < 2:
        for place, row in enumerate(rows):
            console.print("\n" * bool(place), end="")
            print_plain(console, {name: row[name] for name in columns if name in row})
        return
    for place, row in enumerate(rows):
        table = _table_of([row], beside)
        table.show_header = place == 0
        for column, name in zip(table.columns, beside, strict=True):
            column.min_width = widths[name]
        console.print(table)
        below = [name for name in columns if name not in beside and row.get(name)]
        short = [
            f"[bold]{escape(name)}[/bold] {escape(cell(row[name], name))}" for name in below if widths[name] <= SHORT
        ]
        if short:
            console.print(Padding("  ".join(short), (0, 0, 0, INDENT)))
        print_plain(console, {name: row[name] for name in below if widths[name] > SHORT}, INDENT)


def _table_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    table = table_of(*columns)
    table.columns[0].no_wrap = True
    for column, name in zip(table.columns, columns, strict=True):
        if _is_number(rows, name):
            column.justify, column.no_wrap = "right", True
    for row in rows:
        table.add_row(*(escape(cell(row.get(name, ""), name)) for name in columns))
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


def cell(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(cell(item, key) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={cell(item, name)}" for name, item in value.items())
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
