"""What a client may read without a call: the registry, and each target's last status. Judged and audited as calls."""

from itertools import islice
from typing import Any

import mcp_types
from fastmcp import FastMCP
from fastmcp.resources import ResourceContent, ResourceResult
from mcp.shared.exceptions import MCPError

from systemmanager.fleet import FleetView
from systemmanager.gateway import Gateway
from systemmanager.request import Principal
from systemmanager.server.caller import Caller
from systemmanager.shaping import Reply, compact_json

TARGETS = "systemmanager://targets"
STATUS = "systemmanager://targets/{id}/status"
STATUS_NAME = "target_status"
MOST_TARGETS = 1000
"""Rows of the registry resource; `list_targets` pages through more."""

MOST_COMPLETIONS = 100
"""Of MCP; with more than that, the client is told that there are more."""

_JSON = "application/json"


def add_resources(server: FastMCP, gateway: Gateway, caller: Caller) -> None:
    """Register both resources, and the completion of `{id}`."""

    @server.resource(
        TARGETS, name="targets", mime_type=_JSON, description="The targets that you may use, with kind and tags."
    )
    async def targets() -> ResourceResult:
        reply = await gateway.call(caller(), "list_targets", {"limit": MOST_TARGETS}, still=caller.still)
        return _content(reply, TARGETS)

    @server.resource(
        STATUS,
        name=STATUS_NAME,
        mime_type=_JSON,
        description="The status of one target as the gateway last saw it, with the time (seconds since 1970).",
    )
    async def status(id: str) -> ResourceResult:
        return _content(await gateway.last_seen(caller(), id), gateway.shown(STATUS.format(id=id)))

    @server.completion
    async def complete(
        reference: Any, argument: mcp_types.CompletionArgument, context: mcp_types.CompletionContext | None
    ) -> list[str]:
        if getattr(reference, "uri", None) != STATUS or argument.name != "id":
            return []
        return usable_ids(gateway, caller(), argument.value)


def usable_ids(gateway: Gateway, principal: Principal, begin: str) -> list[str]:
    """Ids that begin with `begin`, of the targets that the principal may use; one more than a completion may hold."""
    found = (row["id"] for row in FleetView(gateway, principal).targets() if row["id"].startswith(begin))
    return list(islice(found, MOST_COMPLETIONS + 1))


def _content(reply: Reply, uri: str) -> ResourceResult:
    """The answer's data as a document. Raises `MCPError` with the stable code when there is none."""
    result = reply.results[0] if reply.results else None
    error = reply.error if result is None else result.error
    if error is not None:
        details = {"uri": uri, "call_id": reply.call_id, **error}
        raise MCPError(mcp_types.INVALID_PARAMS, error["message"], details)
    assert result is not None
    return ResourceResult([ResourceContent(compact_json(result.data), mime_type=_JSON)])
