"""What the tools cost a model: tokens of each schema, and of typical answers. `make tokens` prints the table.

The count is an estimate without a vocabulary: a word costs one token per eight letters, digits one per three,
punctuation one per three characters. It stays close to what 3.4 characters a token give.
"""

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from systemmanager.server.app import build
from systemmanager.server.tools import Caller
from tests.support import OPERATOR, real_gateway, target

BUDGET = 12_000
ANSWERS: dict[str, dict[str, Any]] = {
    "get_system_status": {},
    "get_top_processes": {},
    "get_network_status": {},
    "get_active_connections": {},
    "get_container_list": {},
    "list_targets": {},
    "health_check": {},
    "file_operations": {"action": "list", "path": "/var/log"},
}

_PIECES = re.compile(r"[A-Za-z]{1,8}|[0-9]{1,3}|[^\sA-Za-z0-9]{1,3}")


def estimate(text: str) -> int:
    """About how many tokens a text costs."""
    return len(_PIECES.findall(text))


async def schemas() -> dict[str, int]:
    """Tokens of what `tools/list` says of each tool."""
    with tempfile.TemporaryDirectory() as folder:
        async with real_gateway(Path(folder), target("local")) as gateway:
            tools = await build(gateway, Caller(lambda: OPERATOR, None)).list_tools()
    return {tool.name: estimate(tool.to_mcp_tool().model_dump_json(by_alias=True, exclude_none=True)) for tool in tools}


async def answers() -> dict[str, tuple[int, int]]:
    """Tokens of typical answers of this machine, as JSON and as TOON."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        async with real_gateway(Path(folder), target("local")) as gateway:
            for tool, arguments in ANSWERS.items():
                reply = await gateway.call(OPERATOR, tool, arguments)
                found[tool] = (estimate(reply.text("json")), estimate(reply.text("toon")))
    return found


def main() -> None:
    sizes, typical = asyncio.run(schemas()), asyncio.run(answers())
    table = Table("tool", "schema", "answer (JSON)", "answer (TOON)")
    for name, size in sizes.items():
        as_json, as_toon = typical.get(name, ("", ""))
        table.add_row(name, str(size), str(as_json), str(as_toon))
    console = Console()
    console.print(table)
    console.print(f"All schemas: {sum(sizes.values())} of {BUDGET} tokens (estimated)")


if __name__ == "__main__":
    main()
