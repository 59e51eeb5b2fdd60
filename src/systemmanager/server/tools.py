"""Each operation as one MCP tool: schemas, annotations, and the way of a call into the gateway."""

from contextlib import suppress
from typing import Any

import anyio
from fastmcp.server.dependencies import get_context
from fastmcp.tools import Tool, ToolResult
from mcp_types import TextContent, ToolAnnotations, ToolExecution
from mcp_types import Tool as MCPTool
from pydantic import PrivateAttr

from systemmanager.gateway import Gateway
from systemmanager.operation import Operation
from systemmanager.server.caller import Caller
from systemmanager.server.elicitation import AtClient
from systemmanager.server.sampling import ModelAtClient
from systemmanager.server.schemas import input_schema, output_schema
from systemmanager.server.tasks import Tasks, lasts, wish_of


class OperationTool(Tool):
    """A tool that hands its raw arguments to the gateway, which validates them."""

    _gateway: Gateway = PrivateAttr()
    _caller: Caller = PrivateAttr()
    _asked: str = PrivateAttr()
    _tasks: Tasks | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, operation: Operation, gateway: Gateway, caller: Caller, tasks: Tasks) -> "OperationTool":
        tool = cls(
            name=operation.name,
            description=operation.description,
            parameters=input_schema(operation),
            output_schema=output_schema(operation.result),
            annotations=annotations(operation),
            execution=ToolExecution(task_support="optional") if lasts(operation) else None,
        )
        tool._tasks = tasks if lasts(operation) else None
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

    async def run(self, arguments: dict[str, Any]) -> Any:
        """A ToolResult, or what stands for the task that the call became."""
        context = get_context()
        person, model = AtClient(context), ModelAtClient(context)
        wish = None if self._tasks is None else wish_of(context)
        reply = await self._gateway.call(
            self._caller(),
            self._asked,
            arguments,
            progress=_report,
            elicit=person.ask,
            still=self._caller.still,
            sample=model,
            later=None if wish is None else wish.later,
        )
        if (question := person.answer() or model.answer()) is not None:
            return question
        if wish is not None and self._tasks is not None:
            wish.reply = reply
            if reply.job is not None and not wish.later.always:
                return await self._tasks.created(reply)
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
