"""What the tools cost a model: tokens of each schema, and of typical answers. `make tokens` prints the table.

The count is an estimate without a vocabulary: a word costs one token per eight letters, digits one per three,
punctuation one per three characters. It stays close to what 3.4 characters a token give.
"""

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from systemmanager.operation import CATALOGUE
from systemmanager.server.app import build
from systemmanager.server.caller import Caller
from systemmanager.shaping import Reply, TargetReply
from tests.support import OPERATOR, real_gateway, target
from tests.test_cases import FOLDER, made_of

BUDGET = 12_000
LIVE: dict[str, dict[str, Any]] = {
    "get_system_status": {},
    "get_top_processes": {},
    "get_network_status": {},
    "get_network_io_counters": {},
    "get_active_connections": {},
    "list_targets": {},
    "explain_access": {"tool": "manage_service", "arguments": {"action": "restart", "service_name": "nginx"}},
    "query_audit": {},
    "health_check": {},
    "file_operations": {"action": "list", "path": "/var/log"},
}
"""Asked on this machine."""
CASES = {
    "ping_host": "iputils",
    "traceroute": "linux",
    "get_service_status": "debian12_running",
    "manage_service": "restart_answers_the_state_afterwards",
    "check_system_updates": "debian12",
    "update_system_packages": "debian12_applied",
    "update_packages": "debian12",
    "install_package": "debian12_simulated",
    "audit_security": "debian12_with_every_problem",
}
"""What golden cases make of what a target said."""
KEPT = Path(__file__).with_name("answers.yaml")

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


def answers() -> dict[str, tuple[int, int]]:
    """Tokens of a typical answer of one target for each tool, as JSON and as TOON."""
    kept = [_kept(tool, answer) for tool, answer in yaml.safe_load(KEPT.read_text()).items()]
    made = [_of_one(tool, made_of(FOLDER / tool / f"{case}.yaml")) for tool, case in CASES.items()]
    replies = [*kept, *made, *asyncio.run(live())]
    return {reply.tool: (estimate(reply.text("json")), estimate(reply.text("toon"))) for reply in replies}


async def live() -> list[Reply]:
    with tempfile.TemporaryDirectory() as folder:
        async with real_gateway(Path(folder), target("local")) as gateway:
            return [await gateway.call(OPERATOR, tool, arguments) for tool, arguments in LIVE.items()]


def _kept(tool: str, answer: dict[str, Any]) -> Reply:
    """Raises `ValidationError` for one that the tool could not give."""
    read = CATALOGUE[answer.get("as", tool)].result.model_validate(answer["data"])
    return _of_one(tool, read, answer.get("untrusted", False), answer.get("across"))


def _of_one(tool: str, data: BaseModel, untrusted: bool = False, across: dict[str, Any] | None = None) -> Reply:
    told = data.model_dump(mode="json", exclude_none=True)
    return Reply("0" * 16, tool, [TargetReply("web-1", told, untrusted=untrusted)], across=across)


def main() -> None:
    sizes, typical = asyncio.run(schemas()), answers()
    table = Table("tool", "schema", "answer (JSON)", "answer (TOON)")
    for name, size in sizes.items():
        as_json, as_toon = typical[name]
        table.add_row(name, str(size), str(as_json), str(as_toon))
    console = Console()
    console.print(table)
    console.print(f"All schemas: {sum(sizes.values())} of {BUDGET} tokens (estimated)")


if __name__ == "__main__":
    main()
