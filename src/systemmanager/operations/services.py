"""systemd units: how one is, and starting, stopping, enabling it."""

import asyncio
import re
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal

from pydantic import Field

from systemmanager.errors import (
    CommandFailed,
    CommandMissing,
    NotFound,
    PrivilegeRequired,
    TargetError,
    UnreadableOutput,
    Unsupported,
    did_you_mean,
)
from systemmanager.operation import Risk, operation
from systemmanager.operations.cutoff import guarded, way_back
from systemmanager.params import UnitName
from systemmanager.plan import Change, Inverse, Plan
from systemmanager.ports import FreeText, Output, Result, Shell

_PROPERTIES = (
    "Id", "Description", "LoadState", "ActiveState", "SubState", "UnitFileState", "FragmentPath", "MainPID",
    "MemoryCurrent", "TasksCurrent", "NRestarts", "Result", "ExecMainCode", "ExecMainStatus", "StateChangeTimestamp",
    "NeedDaemonReload",
)  # fmt: skip
_UTC = {"TZ": "UTC"}
_JOURNAL_LINES = 10
_SETTLE = "2"
"""Seconds that a unit has to stay up."""
_ACT_WITHIN = 60
_UNSET = 2**64 - 1
"""What systemd writes for a number that it does not have."""

ServiceAction = Literal["start", "stop", "restart", "enable", "disable"]


class UnitState(Result):
    unit: str
    description: str | None = None
    active: str = Field(description="active, inactive, failed, activating, reloading ...")
    sub: str = Field(description="More precisely: running, exited, dead, listening ...")
    load: str
    enabled: str | None = Field(default=None, description="At boot: enabled, disabled, static, masked ...")
    since: str | None = Field(default=None, description="Of the last change of state.")
    main_pid: int | None = None
    memory: int | None = Field(default=None, description="Bytes.")
    tasks: int | None = None
    restarts: int | None = Field(default=None, description="By systemd itself.")
    result: str | None = Field(default=None, description="Why it ended, where not success.")
    exit_status: int | None = None
    signal: int | None = None
    file: str | None = None
    needs_reload: bool | None = Field(default=None, description="Its file changed on disk: daemon-reload.")
    journal: list[FreeText] | None = Field(default=None, description="Its last lines, of a failed unit.")


@operation(scope="system:read", capability="system:read", risk=Risk.LOW)
async def get_service_status(shell: Shell, service_name: UnitName) -> UnitState:
    """How one systemd unit is: state, since when, memory, restarts, and its last log lines when it has failed."""
    state = await _state(shell, service_name)
    if state.active != "failed":
        return state
    return state.model_copy(update={"journal": await _journal(shell, state.unit) or None})


_OPPOSITE = {"start": "stop", "stop": "start", "enable": "disable", "disable": "enable"}
_AT_BOOT = {"enable": "enabled", "disable": "disabled"}


async def plan_service(shell: Shell, action: ServiceAction, service_name: UnitName) -> Plan:
    """What `manage_service` would do."""
    state = await _state(shell, service_name)
    changes, notes = _changes(state, action), []
    if action in ("start", "enable") and state.load == "masked":
        notes.append("The unit is masked: this will fail.")
    if action in ("enable", "disable") and state.enabled not in ("enabled", "disabled", None):
        notes.append(f"The unit is {state.enabled}: that may change nothing.")
    if changes and (back := way_back(action, state.unit, state.active)):
        notes.append(f"Over SSH the target does `systemctl {back} {state.unit}` itself unless we get in afterwards.")
    inverse, reason = None, None
    if not changes:
        reason = "Nothing would change."
    elif action == "restart" and state.active == "active":
        reason = "A restart can't be taken back."
    else:
        opposite = _OPPOSITE.get(action, "stop")
        inverse = Inverse(tool="manage_service", arguments={"action": opposite, "service_name": state.unit})
    return Plan(
        changes=changes,
        preconditions={
            "active": state.active,
            "sub": state.sub,
            "enabled": state.enabled,
            "load": state.load,
            "file": state.file,
            "files": await _digest(shell, state),
            "main_pid": str(state.main_pid) if state.main_pid else None,
        },
        inverse=inverse,
        no_inverse=reason,
        notes=notes or None,
    )


def _changes(state: UnitState, action: ServiceAction) -> list[Change]:
    what, runs = f"unit {state.unit}", state.active in ("active", "activating", "reloading")
    if action in _AT_BOOT:
        wanted = _AT_BOOT[action]
        same = state.enabled == wanted
        return [] if same else [Change(what=what, field="at boot", before=state.enabled, after=wanted)]
    if action == "restart" and runs:
        pid = f"active, pid {state.main_pid}" if state.main_pid else "active"
        return [Change(what=what, field="active", before=pid, after="active, a new process")]
    if runs == (action != "stop"):
        return []
    return [Change(what=what, field="active", before=state.active, after="inactive" if runs else "active")]


@operation(
    scope="service:write",
    capability="service:control",
    risk=Risk.HIGH,
    plan=plan_service,
    privileged=True,
    roles={"unit": "service_name"},
    timeout=90,
    idempotent=False,
)
async def manage_service(shell: Shell, action: ServiceAction, service_name: UnitName) -> UnitState:
    """Start, stop, restart, enable or disable one systemd unit, and say how it is afterwards."""
    before = await _state(shell, service_name)  # an unknown unit is answered before anything happens
    unit = before.unit

    async def change() -> UnitState:
        output = await _act(shell, action, unit)
        if output.status != 0:
            raise await _failure(shell, action, unit, output)
        state = await get_service_status(shell, unit)
        return await _settled(shell, action, state) if action in ("start", "restart") else state

    return await guarded(shell, action, unit, before.active, change, lambda: get_service_status(shell, unit))


async def _act(shell: Shell, action: str, unit: str) -> Output:
    """Have systemd do it, and wait for its end; not for ever, it may take as long as the unit's own timeouts."""
    try:
        async with asyncio.timeout(_ACT_WITHIN):
            return await systemctl(shell, action, "--", unit, privileged=True)
    except TimeoutError as error:
        state = await _state(shell, unit)
        raise CommandFailed(
            f"systemctl {action} {unit} has not ended after {_ACT_WITHIN} s: the unit is {state.active} ({state.sub})",
            hint="systemd goes on with it until the unit's own timeout; get_service_status shows how it is.",
            details={"journal": await _journal(shell, unit)},
        ) from error


async def _settled(shell: Shell, action: str, state: UnitState) -> UnitState:
    """How the unit is two seconds later, where it still runs. Raises `CommandFailed` when it has broken meanwhile."""
    before = state
    if not _broken(before, before) and state.active in ("active", "activating") and state.sub != "exited":
        await shell.run("sleep", _SETTLE, check=False)
        state = await get_service_status(shell, state.unit)
    if not _broken(before, state):
        return state
    seen = {"state": f"{state.active} ({state.sub})", "result": state.result, "exit_status": state.exit_status}
    seen |= {"signal": state.signal, "restarts": state.restarts}
    raise CommandFailed(
        f"systemctl {action} {state.unit} succeeded, but the unit did not stay up: it is {state.active} ({state.sub})",
        hint="Its last log lines say why; get_service_status shows it again.",
        details={
            **{name: value for name, value in seen.items() if value},
            "journal": await _journal(shell, state.unit),
        },
    )


def _broken(before: UnitState, now: UnitState) -> bool:
    """Whether it failed, or systemd has had to start it again."""
    again = (now.restarts or 0) > (before.restarts or 0)
    return now.active == "failed" or now.sub.startswith("auto-restart") or again


async def systemctl(shell: Shell, *arguments: str, privileged: bool = False) -> Output:
    """One systemctl call, its exit status left to the caller. Raises `Unsupported` where systemd does not run."""
    try:
        env = None if privileged else _UTC  # through sudo it would need a right of its own
        output = await shell.run("systemctl", *arguments, privileged=privileged, check=False, env=env)
    except CommandMissing as error:
        raise _no_systemd() from error
    if "not been booted with systemd" in output.stderr or "Host is down" in output.stderr:
        raise _no_systemd()
    return output


def _no_systemd() -> Unsupported:
    return Unsupported(
        "the target does not run systemd, so it has no units",
        hint="Containers and distributions such as Alpine start programs in other ways.",
    )


async def _digest(shell: Shell, state: UnitState) -> str | None:
    """SHA-256 of what a unit's file and its drop-ins say; None where there are none, or they can't be read."""
    if state.file is None:
        return None
    output = await systemctl(shell, "cat", "--no-pager", "--", state.unit)
    return sha256(output.stdout.encode("utf-8", "surrogateescape")).hexdigest()[:16] if output.status == 0 else None


async def _state(shell: Shell, unit: str) -> UnitState:
    output = await systemctl(shell, "show", f"--property={','.join(_PROPERTIES)}", "--", unit)
    if output.status != 0:
        raise _refused("show", unit, output)
    state = parse_unit(output.stdout)
    if state.load == "not-found":
        raise await _unknown(shell, unit)
    return state


def parse_unit(text: str) -> UnitState:
    """What `systemctl show --property=...` says of one unit."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if not {"Id", "LoadState", "ActiveState", "SubState"} <= fields.keys():
        raise UnreadableOutput("systemctl show did not name the unit's state", details={"output": text[:300]})
    return UnitState(
        unit=fields["Id"],
        description=fields.get("Description") if fields.get("Description") != fields["Id"] else None,
        active=fields["ActiveState"],
        sub=fields["SubState"],
        load=fields["LoadState"],
        enabled=fields.get("UnitFileState") or None,
        since=_time(fields.get("StateChangeTimestamp", "")),
        main_pid=_number(fields, "MainPID") or None,
        memory=_number(fields, "MemoryCurrent"),
        tasks=_number(fields, "TasksCurrent"),
        restarts=_number(fields, "NRestarts") or None,
        result=fields.get("Result") if fields.get("Result") not in ("", "success") else None,
        exit_status=_number(fields, "ExecMainStatus") or None if fields.get("ExecMainCode") == "1" else None,
        signal=_number(fields, "ExecMainStatus") or None if fields.get("ExecMainCode") in ("2", "3") else None,
        file=fields.get("FragmentPath") or None,
        needs_reload=True if fields.get("NeedDaemonReload") == "yes" else None,
    )


def _number(fields: dict[str, str], name: str) -> int | None:
    value = fields.get(name, "")
    return int(value) if value.isdecimal() and int(value) != _UNSET else None


def _time(text: str) -> str | None:
    """`Tue 2025-03-04 09:12:33 UTC` as ISO 8601; in another zone than UTC the text stays as it is."""
    if not text or text in ("n/a", "0"):
        return None
    match = re.fullmatch(r"\w+ (\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)(?:\.\d+)? UTC", text)
    if not match:
        return text
    moment = datetime.fromisoformat(f"{match[1]}T{match[2]}").replace(tzinfo=UTC)
    return moment.isoformat().replace("+00:00", "Z")


async def _unknown(shell: Shell, unit: str) -> NotFound:
    """The error for a unit that systemd does not know, with the names near it."""
    suffix = unit.rpartition(".")[2] if "." in unit else "service"
    listings = await asyncio.gather(
        systemctl(shell, "list-unit-files", "--no-legend", "--no-pager", "--full", "--plain"),
        systemctl(shell, "list-units", "--all", "--no-legend", "--no-pager", "--full", "--plain"),
    )
    words = (line.split(maxsplit=1) for output in listings for line in output.stdout.splitlines())
    names = {found[0].removesuffix(".service") for found in words if found and found[0].endswith(f".{suffix}")}
    return NotFound(f"systemd knows no unit {unit!r}", hint=did_you_mean(unit.removesuffix(".service"), names) or None)


async def _journal(shell: Shell, unit: str) -> list[str]:
    """The unit's last log lines; none where the journal may not be read."""
    arguments = (f"--unit={unit}", f"--lines={_JOURNAL_LINES}", "--output=short-iso", "--no-pager", "--quiet", "--utc")
    try:
        output = await shell.run("journalctl", *arguments, privileged=True, check=False, latest=True)
    except TargetError:
        return []
    return [line[:500] for line in output.stdout.splitlines()[-_JOURNAL_LINES:]] if output.status == 0 else []


async def _failure(shell: Shell, action: str, unit: str, output: Output) -> TargetError:
    """Why an action failed, with what the unit's log says where it did not come up."""
    error = _refused(action, unit, output)
    if isinstance(error, CommandFailed) and action in ("start", "restart", "stop"):
        state = await get_service_status(shell, unit)
        seen = {"state": f"{state.active} ({state.sub})", "result": state.result, "exit_status": state.exit_status}
        journal = state.journal or await _journal(shell, unit)
        error.details = {**(error.details or {}), **{k: v for k, v in seen.items() if v}, "journal": journal}
    return error


def _refused(action: str, unit: str, output: Output) -> TargetError:
    if re.search(r"authentication (is )?required|Access denied|Permission denied|Not authorized", output.stderr, re.I):
        return PrivilegeRequired(
            f"systemd does not let the gateway {action} {unit}",
            hint="Set sudo_policy of the target, and allow systemctl without a password in its sudoers.",
            details={"stderr": output.stderr.strip()[-600:]},
        )
    masked = "is masked" in output.stderr
    return CommandFailed(
        f"systemctl {action} {unit} ended with exit status {output.status}",
        hint=f"The unit is masked: `systemctl unmask {unit}` first." if masked else None,
        details={"stderr": (output.stderr or output.stdout).strip()[-600:]},
    )
