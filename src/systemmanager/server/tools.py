"""Each operation as one MCP tool: schemas, annotations, and the way of a call into the gateway."""

from collections.abc import Callable, Sequence
from typing import Any

from fastmcp.server.dependencies import get_context
from fastmcp.server.transforms import GetToolNext, Transform
from fastmcp.tools import Tool, ToolResult
from fastmcp.utilities.versions import VersionSpec
from mcp_types import TextContent, ToolAnnotations
from pydantic import PrivateAttr

from systemmanager.arguments import call_model
from systemmanager.fleet import visible
from systemmanager.gateway import Gateway
from systemmanager.operation import CATALOGUE, Operation
from systemmanager.request import Principal
from systemmanager.server.schemas import input_schema, output_schema

Caller = Callable[[], Principal]


class OperationTool(Tool):
    """A tool that hands its raw arguments to the gateway, which validates them."""

    _gateway: Gateway = PrivateAttr()
    _caller: Caller = PrivateAttr()

    @classmethod
    def of(cls, operation: Operation, gateway: Gateway, caller: Caller) -> "OperationTool":
        tool = cls(
            name=operation.name,
            description=operation.description,
            parameters=input_schema(call_model(operation)),
            output_schema=output_schema(operation.result),
            annotations=annotations(operation),
        )
        return tool._bound(gateway, caller)

    def _bound(self, gateway: Gateway, caller: Caller) -> "OperationTool":
        self._gateway, self._caller = gateway, caller
        return self

    async def run(self, arguments: dict[str, Any]) -> ToolResult:
        reply = await self._gateway.call(self._caller(), self.name, arguments, progress=_report)
        wanted = "toon" if arguments.get("format") == "toon" else "json"
        return ToolResult(
            content=[TextContent(type="text", text=reply.text(wanted))],
            structured_content=reply.as_dict(),
            is_error=reply.failed,
        )


async def _report(done: int, total: int, target: str) -> None:
    await get_context().report_progress(done, total, f"{target} answered")


def annotations(operation: Operation) -> ToolAnnotations:
    """What a client may assume, read from the declaration."""
    return ToolAnnotations(
        read_only_hint=not operation.mutates,
        destructive_hint=operation.mutates and operation.access.risk in ("high", "critical"),
        idempotent_hint=operation.idempotent,
        open_world_hint=operation.open_world,
    )


class Listing(Transform):
    """Shows a principal only what it can use on some target, and lets the gateway answer for names that nobody has."""

    def __init__(self, gateway: Gateway, caller: Caller) -> None:
        self._gateway, self._caller = gateway, caller

    async def list_tools(self, tools: Sequence[Tool]) -> Sequence[Tool]:
        order = {name: place for place, name in enumerate(CATALOGUE)}
        shown = (tool for tool in tools if tool.name not in CATALOGUE or self._visible(tool.name))
        return sorted(shown, key=lambda tool: (order.get(tool.name, -1), tool.name))

    def _visible(self, tool: str) -> bool:
        """Whether the caller can use a tool on some target. Nobody calls while the server starts: nothing is shown."""
        try:
            principal = self._caller()
        except PermissionError:
            return False
        return tool in CATALOGUE and visible(principal, CATALOGUE[tool], list(self._gateway.registry.targets.values()))

    async def get_tool(self, name: str, call_next: GetToolNext, *, version: VersionSpec | None = None) -> Tool | None:
        found = await call_next(name, version=version)
        if found is not None:
            return found
        unknown = OperationTool(name=name[:100], description="There is no such tool.", parameters={"type": "object"})
        return unknown._bound(self._gateway, self._caller)
