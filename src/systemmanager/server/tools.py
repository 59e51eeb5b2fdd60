"""Each operation as one MCP tool: schemas, annotations, and the way of a call into the gateway."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
from fastmcp.server.dependencies import get_context
from fastmcp.tools import Tool, ToolResult
from mcp_types import TextContent, ToolAnnotations
from mcp_types import Tool as MCPTool
from pydantic import PrivateAttr

from systemmanager.gateway import Gateway
from systemmanager.journal import Still
from systemmanager.operation import Operation
from systemmanager.request import Principal
from systemmanager.server.elicitation import AtClient
from systemmanager.server.sampling import ModelAtClient
from systemmanager.server.schemas import input_schema, output_schema


@dataclass(frozen=True, slots=True)
class Caller:
    """Names who makes the call being served. `still` asks their credential once more, after the call has waited; None
    where there is none that could end."""

    now: Callable[[], Principal]
    still: Still | None

    def __call__(self) -> Principal:
        return self.now()


class OperationTool(Tool):
    """A tool that hands its raw arguments to the gateway, which validates them."""

    _gateway: Gateway = PrivateAttr()
    _caller: Caller = PrivateAttr()
    _asked: str = PrivateAttr()

    @classmethod
    def of(cls, operation: Operation, gateway: Gateway, caller: Caller) -> "OperationTool":
        tool = cls(
            name=operation.name,
            description=operation.description,
            parameters=input_schema(operation),
            output_schema=output_schema(operation.result),
            annotations=annotations(operation),
        )
        return tool._bound(gateway, caller, operation.name)

    @classmethod
    def unknown(cls, name: str, gateway: Gateway, caller: Caller) -> "OperationTool":
        """A tool that is not there: the gateway says so, and writes down who asked."""
        tool = cls(name="unknown", description="There is no such tool.", parameters={"type": "object"})
        return tool._bound(gateway, caller, name)

    def _bound(self, gateway: Gateway, caller: Caller, asked: str) -> "OperationTool":
        self._gateway, self._caller, self._asked = gateway, caller, asked
        return self

    def to_mcp_tool(self, **overrides: Any) -> MCPTool:
        """The tool on the wire, without fastmcp's own tags: they say nothing to a model."""
        tool = super().to_mcp_tool(**overrides)
        tool.meta = None
        return tool

    async def run(self, arguments: dict[str, Any]) -> ToolResult:
        person, model = AtClient(get_context()), ModelAtClient(get_context())
        reply = await self._gateway.call(
            self._caller(),
            self._asked,
            arguments,
            progress=_report,
            elicit=person.ask,
            still=self._caller.still,
            sample=model,
        )
        if (question := person.answer() or model.answer()) is not None:
            return question
        wanted = "toon" if arguments.get("format") == "toon" else "json"
        return ToolResult(
            content=[TextContent(type="text", text=reply.text(wanted))],
            structured_content=reply.as_dict(),
            is_error=reply.failed,
        )


async def _report(done: float, total: int, message: str) -> None:
    """Progress is a courtesy: a client that has gone fails no call."""
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await get_context().report_progress(done, total, message)


def annotations(operation: Operation) -> ToolAnnotations:
    """What a client may assume, read from the declaration. The last two mean something for tools that change only."""
    changes = operation.mutates
    return ToolAnnotations(
        read_only_hint=not changes,
        destructive_hint=operation.access.risk in ("high", "critical") if changes else None,
        idempotent_hint=operation.idempotent if changes else None,
        open_world_hint=operation.open_world,
    )
