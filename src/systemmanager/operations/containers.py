"""Containers: list, start, stop, restart, logs."""

import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

import anyio
from pydantic import Field

from systemmanager.operation import Risk, demand, operation
from systemmanager.paging import page
from systemmanager.params import ContainerName, Cursor, Limit, LineCount
from systemmanager.plan import Change, Inverse, Plan
from systemmanager.ports import Docker, ForeignText, FreeText, Json, Page, Result

SETTLE = 1.0
"""Seconds that a container that was just started is watched, so that one that dies at once is not called started."""

MOST_LOG = 128 * 1024
"""Most characters of a log in an answer. Its end is kept: there stands what happened last."""


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- list ------------------------------------------------------------------------------------------------------------


class ContainerRow(Result):
    name: str
    id: str
    image: str
    state: str
    status: str
    created: str
    ports: list[str] | None = None
    project: str | None = Field(default=None, description="Compose project and service.")
    service: str | None = None


class ContainerList(Page):
    running: int
    containers: list[ContainerRow] = Field(description="Running first.")


def container_name(row: Json) -> str:
    """The name of a row of the engine's list; other names of it are links, with a second slash in them."""
    names: list[str] = [name.lstrip("/") for name in row.get("Names") or []]
    return next((name for name in names if "/" not in name), names[0] if names else str(row["Id"])[:12])


def published(ports: Iterable[Json]) -> list[str]:
    """`8080->80/tcp` on all addresses, `127.0.0.1:8080->80/tcp` on one, `80/tcp` when it is not published."""
    found: dict[str, None] = {}
    for port in sorted(ports, key=lambda port: (port["PrivatePort"], port.get("PublicPort") or 0)):
        inside = f"{port['PrivatePort']}/{port['Type']}"
        if not port.get("PublicPort"):
            found[inside] = None
            continue
        address = port.get("IP", "")
        address = f"[{address}]" if ":" in address else address
        everywhere = address in ("", "0.0.0.0", "[::]")  # noqa: S104  read, not bound
        found[f"{'' if everywhere else address + ':'}{port['PublicPort']}->{inside}"] = None
    return list(found)


def container_row(row: Json) -> ContainerRow:
    labels = row.get("Labels") or {}
    return ContainerRow(
        name=container_name(row),
        id=row["Id"][:12],
        image=row["Image"],
        state=row["State"],
        status=row["Status"],
        created=moment(row["Created"]),
        ports=published(row.get("Ports") or []) or None,
        project=_compose_name(labels.get("com.docker.compose.project")),
        service=_compose_name(labels.get("com.docker.compose.service")),
    )


def _compose_name(label: str | None) -> str | None:
    """A name as Compose makes them; whoever made the image may have written anything there."""
    return label if label and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", label) else None


@operation(scope="container:read", capability="container:read", risk=Risk.LOW)
async def get_container_list(docker: Docker, limit: Limit = 200, cursor: Cursor | None = None) -> ContainerList:
    """Containers with image, state, published ports and Compose project; stopped ones too."""
    found = await docker.containers()
    ranked = sorted(found, key=lambda row: (row["State"] != "running", container_name(row)))
    shown, marks = page(ranked, limit, cursor)
    running = sum(row["State"] == "running" for row in found)
    return ContainerList(running=running, containers=[container_row(row) for row in shown], **marks)


# --- start, stop, restart, logs --------------------------------------------------------------------------------------


class ContainerState(Result):
    name: str
    state: str
    health: str | None = None
    exit_code: int | None = None
    problem: ForeignText | None = None
    logs: FreeText | None = None
    truncated: bool | None = Field(default=None, description="The log's beginning is cut.")


Action = Literal["start", "stop", "restart", "logs"]


async def plan_container(docker: Docker, action: Action, name_or_id: ContainerName, lines: LineCount = 100) -> Plan:
    """What `manage_container` would do."""
    found = await docker.inspect(name_or_id)
    state, name = found["State"], found["Name"].lstrip("/")
    runs = bool(state["Running"]) and not state.get("Paused")
    changes: list[Change] = []
    if action == "restart" or runs != (action == "start"):
        after = "exited" if action == "stop" else "running"
        again = " again" if action == "restart" and runs else ""
        changes = [Change(what=f"container {name}", field="state", before=state["Status"], after=f"{after}{again}")]
    notes = []
    if action == "stop" and (found.get("HostConfig") or {}).get("AutoRemove"):
        notes.append("It was started with --rm: stopped, it is gone.")
    inverse, reason = None, "Nothing would change." if not changes else None
    if changes and action == "restart" and runs:
        reason = "A restart can't be taken back."
    elif changes and notes:
        reason = "The engine removes it when it stops."
    elif changes:
        opposite = "start" if action == "stop" else "stop"
        inverse = Inverse(tool="manage_container", arguments={"action": opposite, "name_or_id": name})
    return Plan(
        changes=changes,
        preconditions=standing(found),
        inverse=inverse,
        no_inverse=reason,
        notes=notes or None,
    )


def standing(found: Json) -> dict[str, str | None]:
    """What tells a container from another one, and from itself at another time."""
    state = found["State"]
    return {
        "container": str(found["Id"]),
        "image": str(found.get("Image") or ""),
        "state": str(state["Status"]),
        "started": str(state.get("StartedAt") or ""),
    }


READ_LOGS = demand("container:read", "container:read", Risk.LOW)


@operation(
    scope="container:write",
    capability="container:control",
    risk=Risk.HIGH,
    timeout=60,
    by="action",
    plan=plan_container,
    cases={"logs": READ_LOGS},
)
async def manage_container(
    docker: Docker,
    action: Action,
    name_or_id: ContainerName,
    lines: LineCount = 100,
) -> ContainerState:
    """Start, stop or restart a container and say how it is afterwards, or read its last log lines."""
    if action == "logs":
        return await _state(docker, await docker.inspect(name_or_id), lines)
    await docker.act(action, name_or_id)
    found = await docker.inspect(name_or_id)
    if action != "stop":
        found = await _settled(docker, found)
    problem = trouble(found["State"]) if action != "stop" else None
    return await _state(docker, found, 20 if problem else 0, problem)


def trouble(state: Json) -> str | None:
    """What is wrong with a container that should run; None for one that runs or has ended well."""
    if state["Status"] == "restarting":
        return f"it dies again and again, last with exit status {state['ExitCode']}"
    if not state["Running"] and (state["ExitCode"] or state.get("OOMKilled") or state.get("Error")):
        reason = " (out of memory)" if state.get("OOMKilled") else f" ({state['Error']})" if state.get("Error") else ""
        return f"it died right after its start with exit status {state['ExitCode']}{reason}"
    return None


async def _settled(docker: Docker, found: Json) -> Json:
    """The container once it has ended, or has run for a moment."""
    until = time.monotonic() + SETTLE
    while found["State"]["Status"] == "running" and time.monotonic() < until:
        await anyio.sleep(0.2)
        found = await docker.inspect(found["Id"])
    return found


async def _state(docker: Docker, found: Json, lines: int, problem: str | None = None) -> ContainerState:
    state = found["State"]
    log = await docker.logs(found["Id"], lines) if lines else None
    text = log.text[-MOST_LOG:].removesuffix("\n") if log else ""
    return ContainerState(
        name=found["Name"].lstrip("/"),
        state=state["Status"],
        health=(state.get("Health") or {}).get("Status"),
        exit_code=None if state["Running"] or state["Status"] == "created" else state["ExitCode"],
        problem=problem,
        logs=text if log else None,
        truncated=True if log and (log.truncated or len(log.text) > MOST_LOG) else None,
    )
