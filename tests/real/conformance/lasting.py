"""What the conformance suites call by name to see tasks: operations of the gateway that are jobs like any other."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mcp_types as types
from fastmcp import FastMCP
from fastmcp.server.dependencies import get_context
from fastmcp.tools import Tool
from fastmcp.tools.base import InputRequiredToolResult

from systemmanager.errors import CommandFailed
from systemmanager.operation import CATALOGUE, Risk, operation
from systemmanager.ports import Fleet, Result
from tests.real.conformance.fixtures import ask_person, required


class Computed(Result):
    label: str


@contextmanager
def lasting_tools() -> Iterator[None]:
    """The catalogue with them in it, for a server that is built meanwhile."""

    @operation(scope=None, risk=Risk.LOW, job="once")
    async def slow_compute(fleet: Fleet, seconds: float = 0, label: str = "") -> Computed:
        """Take some seconds."""
        await asyncio.sleep(seconds)
        return Computed(label=label)

    @operation(scope=None, risk=Risk.LOW, job="once")
    async def failing_job(fleet: Fleet) -> Computed:
        """Fail after a second."""
        await asyncio.sleep(1)
        raise CommandFailed("it fails on purpose")

    try:
        yield
    finally:
        del CATALOGUE["slow_compute"], CATALOGUE["failing_job"]


def add_lasting(server: FastMCP, own: dict[str, Tool]) -> None:
    """`own` are the gateway's tools."""

    @server.tool(description="Greets.", output_schema=None)
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    server.add_tool(Asking(name="test_tool_with_task", description="Asks, then lasts.", parameters=NOTHING).over(own))


NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


class Asking(Tool):
    """Needs an answer before it begins what lasts."""

    lasting: dict[str, Tool] = {}  # noqa: RUF012

    def over(self, own: dict[str, Tool]) -> "Asking":
        self.lasting = own
        return self

    async def run(self, arguments: dict[str, Any]) -> Any:
        answers = get_context().input_responses or {}
        said = answers.get("user_name")
        if not isinstance(said, types.ElicitResult) or said.content is None:
            return InputRequiredToolResult(required({"user_name": ask_person("What is your name?", "name")}))
        return await self.lasting["slow_compute"].run({"seconds": 1, "label": str(said.content["name"])})
