"""Root causes: what the log of a container, a unit or a file says is wrong, with the lines that say so."""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import anyio.to_thread
from pydantic import Field, StringConstraints

from systemmanager.diagnosis.diagnose import Log, diagnose
from systemmanager.diagnosis.facts import of_container, of_unit
from systemmanager.diagnosis.lines import Line, of_journal
from systemmanager.errors import NotFound, TargetError, Unsupported
from systemmanager.operation import Risk, operation
from systemmanager.operations import text_files
from systemmanager.operations.analysis_answer import LogAnalysis, answer
from systemmanager.operations.containers import container_name
from systemmanager.operations.services import systemctl
from systemmanager.params import LineCount, LogSource
from systemmanager.ports import Docker, Files, Json, Shell

MOST_NEIGHBOURS = 5
NEIGHBOUR_LINES = 100
_NEIGHBOURS_WITHIN = 10.0
"""Seconds for what neighbours say; without it the answer is still one."""

IN_JOURNAL = "A system without syslog keeps that in its journal: name_or_id unit:ssh (or unit:sshd), unit:cron ..."

_LONGEST_ID = 64
_UNIT = "unit:"
_PROPERTIES = "Id,LoadState,ActiveState,SubState,Result,ExecMainCode,ExecMainStatus,NRestarts"
_EVERYBODYS = frozenset({"bridge", "host", "none"})
"""Networks that say nothing about what belongs together."""

Question = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Context = Annotated[Question | None, Field(description="The question, such as: why does it restart?")]
UseAi = Annotated[bool, Field(description="Let a model reword and rank what was found, where there is one.")]


@operation(scope="container:read", capability="container:read", risk=Risk.LOW, by="name_or_id", timeout=60)
async def analyze_container_logs(
    docker: Docker, name_or_id: LogSource, lines: LineCount = 200, context: Context = None, use_ai: UseAi = True
) -> LogAnalysis:
    """Root cause of trouble from a log: likely causes with confidence and line numbers, errors by template, slowness,
    what to do. Containers with their state, health and neighbours; units and files too."""
    found = await docker.inspect(name_or_id)
    log, cut = await _container(docker, found, lines)
    neighbours = await _neighbours(docker, found, min(lines, NEIGHBOUR_LINES))
    return await _answered(log, neighbours, context, cut=cut)


@operation(
    form_of=analyze_container_logs,
    begins="/",
    scope="file:read",
    capability="file:read",
    risk=Risk.HIGH,
    by="name_or_id",
    roles={"path": "name_or_id"},
    timeout=60,
)
async def _of_file(
    files: Files, name_or_id: LogSource, lines: LineCount = 200, context: Context = None, use_ai: UseAi = True
) -> LogAnalysis:
    """The end of a log file."""
    try:
        info = await files.info(name_or_id)
    except NotFound as error:
        if name_or_id.startswith("/var/log/"):
            error.hint = f"{error.hint or ''} {IN_JOURNAL}".strip()
        raise
    if info.kind == "directory":
        raise Unsupported(f"{name_or_id} is a directory", hint="Name a log file; file_operations lists what is there.")
    reader = text_files.Reader(files, name_or_id)
    if kind := await reader.binary(max(0, info.size - text_files.SAMPLE)):
        raise Unsupported(f"{name_or_id} is no text: {kind}", hint="Name a text file; rotated ones may be compressed.")
    part = await text_files.last_lines(reader, info.size, lines, 0)
    return await _answered(Log.of(name_or_id, part.text, time.time()), (), context, cut=part.more)


@operation(
    form_of=analyze_container_logs,
    begins=_UNIT,
    scope="system:read",
    capability="system:read",
    risk=Risk.LOW,
    by="name_or_id",
    timeout=60,
)
async def _of_unit(
    shell: Shell, name_or_id: LogSource, lines: LineCount = 200, context: Context = None, use_ai: UseAi = True
) -> LogAnalysis:
    """The journal of a unit, and its state."""
    unit = name_or_id.removeprefix(_UNIT)
    output = await systemctl(shell, "show", f"--property={_PROPERTIES}", "--", unit)
    fields = dict(line.split("=", 1) for line in output.stdout.splitlines() if "=" in line)
    if fields.get("LoadState", "not-found") == "not-found":
        raise NotFound(f"systemd knows no unit {unit!r}")
    name = fields.get("Id") or unit
    arguments = (f"--unit={name}", f"--lines={lines}", "--output=json", "--no-pager", "--quiet", "--all")
    output = await shell.run("journalctl", *arguments, privileged=True, latest=True)
    log = Log(name, tuple(journal_lines(output.stdout)), of_unit(fields))
    return await _answered(log, (), context, cut=output.truncated)


def journal_lines(text: str) -> list[Line]:
    """Lines of `journalctl --output=json`; one that was cut is left out."""
    found: list[Line] = []
    for row in text.splitlines():
        try:
            fields = json.loads(row)
        except (ValueError, RecursionError):
            continue
        if isinstance(fields, dict):
            found += of_journal(fields, len(found) + 1)
    return found


async def _answered(log: Log, neighbours: Iterable[Log], context: str | None, *, cut: bool) -> LogAnalysis:
    """The diagnosis, made in a thread: ten thousand lines take a while, in which other calls go on."""
    found = await anyio.to_thread.run_sync(diagnose, log, list(neighbours), context or "")
    return answer(found, cut=cut)


# --- containers -------------------------------------------------------------------------------------------------------


async def _container(docker: Docker, found: Json, lines: int) -> tuple[Log, bool]:
    tail = await docker.logs(found["Id"], lines, stamped=True)
    return Log.of(found["Name"].lstrip("/"), tail.text, time.time(), of_container(found), stamped=True), tail.truncated


async def _neighbours(docker: Docker, found: Json, lines: int) -> list[Log]:
    """Logs of containers of the same Compose project, else on the same network of their own."""

    async def one(row: Json) -> Log | None:
        try:
            return (await _container(docker, await docker.inspect(row["Id"]), lines))[0]
        except TargetError:  # it was removed meanwhile, or its log driver keeps nothing
            return None

    try:
        async with asyncio.timeout(_NEIGHBOURS_WITHIN):
            rows = beside(found, await docker.containers())
            logs = await asyncio.gather(*(one(row) for row in rows[:MOST_NEIGHBOURS]))
    except (TargetError, TimeoutError):
        return []
    return [log for log in logs if log is not None]


def beside(found: Json, rows: Iterable[Json]) -> list[Json]:
    """Rows of the engine's list that belong to a container: those that don't run first."""
    project, networks = _belongs(found["Config"].get("Labels"), found.get("NetworkSettings"))
    own = found["Id"][:_LONGEST_ID]
    others = []
    for row in rows:
        theirs, shared = _belongs(row.get("Labels"), row.get("NetworkSettings"))
        if row["Id"] != own and (project == theirs if project else networks & shared):
            others.append(row)
    return sorted(others, key=lambda row: (row["State"] == "running", container_name(row)))


def _belongs(labels: Mapping[str, str] | None, networks: Mapping[str, Any] | None) -> tuple[str | None, set[str]]:
    names = set((networks or {}).get("Networks") or {}) - _EVERYBODYS
    return (labels or {}).get("com.docker.compose.project"), names
