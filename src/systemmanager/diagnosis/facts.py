"""What is known of a program beside its log: how it ended, how often, what its health check says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from systemmanager.diagnosis.lines import Line, Parser

NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Facts:
    """`running` is None where nothing is known (a file). `said` holds what the engine, systemd or a health check said
    about it; `stopped` that somebody asked it to stop."""

    name: str = ""
    state: str | None = None
    running: bool | None = None
    exit_code: int | None = None
    signal: int | None = None
    oom_killed: bool = False
    restarts: int = 0
    restarting: bool = False
    health: str | None = None
    failing_streak: int = 0
    memory_limit: int = 0
    result: str | None = None
    started: float | None = None
    finished: float | None = None
    stopped: bool = False
    said: tuple[Line, ...] = ()

    @property
    def failing(self) -> bool:
        """Whether it is in trouble as it is now, whatever its log says."""
        ended_badly = not self.running and self.exit_code not in (None, 0) and not self.stopped
        return (
            self.oom_killed
            or self.restarting
            or self.health == "unhealthy"
            or self.result is not None
            or (self.running is not None and ended_badly)
            or bool(self.said and self.said[0].source == "engine")
            or (self.restarts >= 3 and self.exit_code not in (None, 0))
        )

    @property
    def well(self) -> bool:
        """Whether it is known to run as it should."""
        return bool(self.running) and not self.failing and self.restarts == 0

    def shown(self) -> dict[str, Any]:
        """The part that says something."""
        fields = {
            "state": self.state,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "oom_killed": self.oom_killed or None,
            "restarts": self.restarts or None,
            "health": self.health,
            "result": self.result,
            "memory_limit": self.memory_limit or None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def of_container(found: Mapping[str, Any]) -> Facts:
    """From the engine's inspection of a container."""
    state, host = found["State"], found.get("HostConfig") or {}
    health = state.get("Health") or {}
    status, code = str(state.get("Status")), int(state.get("ExitCode") or 0)
    checks = [one for one in health.get("Log") or [] if one.get("ExitCode")]
    said = _said("engine", str(state.get("Error") or "")) + _said("health", str(checks[-1]["Output"]) if checks else "")
    ended = status in ("exited", "dead", "restarting")
    return Facts(
        name=str(found.get("Name", "")).lstrip("/"),
        state=status,
        running=bool(state.get("Running")) and status != "restarting",
        exit_code=code if ended or code else None,
        signal=code - 128 if ended and 128 < code < 160 else None,
        oom_killed=bool(state.get("OOMKilled")),
        restarts=int(found.get("RestartCount") or 0),
        restarting=status == "restarting",
        health=str(health["Status"]) if health.get("Status") not in (None, "none") else None,
        failing_streak=int(health.get("FailingStreak") or 0),
        memory_limit=int(host.get("Memory") or 0),
        started=_time(state.get("StartedAt")),
        finished=_time(state.get("FinishedAt")),
        stopped=status == "exited" and code == 143,
        said=said,
    )


def of_unit(fields: Mapping[str, str]) -> Facts:
    """From the properties of `systemctl show`."""
    active, result = fields.get("ActiveState", ""), fields.get("Result", "")
    by_signal = fields.get("ExecMainCode") in ("2", "3")  # CLD_KILLED, CLD_DUMPED
    status = fields.get("ExecMainStatus", "")
    number = int(status) if status.isdigit() else None
    return Facts(
        name=fields.get("Id", ""),
        state=f"{active} ({fields.get('SubState', '')})",
        running=active in ("active", "reloading"),
        exit_code=None if by_signal or active == "active" else number,
        signal=number if by_signal else None,
        oom_killed=result == "oom-kill",
        restarts=int(fields["NRestarts"]) if fields.get("NRestarts", "").isdigit() else 0,
        restarting=fields.get("SubState") == "auto-restart",
        result=result if result not in ("", "success") else None,
        stopped=active == "inactive" and result in ("", "success"),
    )


def _said(source: str, text: str) -> tuple[Line, ...]:
    rows = [row for row in text.splitlines() if row.strip()][:20]
    parse = Parser(0.0)
    found = (parse.line(number, row) for number, row in enumerate(rows, 1))
    return tuple(Line(line.number, line.text, line.message, None, line.level, None, source) for line in found)


def _time(text: Any) -> float | None:
    if not isinstance(text, str) or text == NEVER:
        return None
    return Parser(0.0).line(1, text).time
