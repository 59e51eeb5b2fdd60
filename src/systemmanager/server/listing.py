"""What each principal is shown of the tools, prompts and resources, in an order that does not change."""

from collections.abc import Sequence

from fastmcp.prompts import Prompt
from fastmcp.resources import ResourceTemplate
from fastmcp.server.transforms import GetToolNext, Transform
from fastmcp.tools import Tool
from fastmcp.utilities.versions import VersionSpec

from systemmanager.fleet import Usable
from systemmanager.gateway import Gateway
from systemmanager.operation import CATALOGUE
from systemmanager.server.caller import Caller
from systemmanager.server.prompts import QUESTIONS, tools_of
from systemmanager.server.resources import STATUS_NAME
from systemmanager.server.tools import OperationTool


class Listing(Transform):
    """Shows a principal only what it can use on some target, and lets the gateway answer for names that nobody has.

    A courtesy to the model that reads the lists: rights are judged in the gateway, on each call and each read.
    """

    def __init__(self, gateway: Gateway, caller: Caller) -> None:
        self._gateway, self._caller = gateway, caller

    async def list_tools(self, tools: Sequence[Tool]) -> Sequence[Tool]:
        order, usable = {name: place for place, name in enumerate(CATALOGUE)}, self._usable()
        shown = (tool for tool in tools if tool.name not in CATALOGUE or tool.name in usable)
        return sorted(shown, key=lambda tool: (order.get(tool.name, -1), tool.name))

    def _usable(self) -> frozenset[str]:
        """The tools that the caller can use on some target. Nobody calls while the server starts: nothing is shown."""
        try:
            principal = self._caller()
        except PermissionError:
            return frozenset()
        return Usable(principal, self._gateway.registry).anywhere()

    async def list_prompts(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        order, usable = {question.name: place for place, question in enumerate(QUESTIONS)}, self._usable()
        shown = (prompt for prompt in prompts if usable.issuperset(tools_of(prompt.name)))
        return sorted(shown, key=lambda prompt: (order.get(prompt.name, -1), prompt.name))

    async def list_resource_templates(self, templates: Sequence[ResourceTemplate]) -> Sequence[ResourceTemplate]:
        usable = self._usable()
        return [one for one in templates if one.name != STATUS_NAME or "get_system_status" in usable]

    async def get_tool(self, name: str, call_next: GetToolNext, *, version: VersionSpec | None = None) -> Tool | None:
        found = await call_next(name, version=version)
        return OperationTool.unknown(name, self._gateway, self._caller) if found is None else found
