"""Every failure that leaves the gateway, with its stable code.

    GatewayError
    ├── ConfigError            config_invalid       a file or a setting is wrong; carries every Problem found
    ├── CallError                                   the call itself is at fault: nothing ran anywhere
    │   ├── UnknownTool        unknown_tool
    │   ├── InvalidArguments   invalid_arguments
    │   ├── UnknownTarget      unknown_target
    │   ├── TooManyCalls       busy                 of this principal at a time
    │   ├── TooManySessions    too_many_sessions    old-era MCP sessions, none of which may end for another
    │   ├── IdempotencyConflict idempotency_conflict  the key stands for another call
    │   ├── JobsUnavailable    jobs_unavailable     what has to survive can't be written down
    │   ├── Unauthenticated    unauthenticated      the credential ended, or nobody could say, while the call waited
    │   │   └── CredentialExpired unauthenticated   as it was to, by its own time
    │   ├── AuditUnavailable   audit_unavailable    no audit, no effect
    │   └── PlansUnavailable   plans_unavailable    plans can't be kept or looked up
    └── TargetError                                 one target of the call could not
        ├── Denied             denied, rate_limited, busy ... (the code of the rule that said no)
        ├── ApprovalRequired   approval_required    a person has to say yes first
        ├── ApprovalRefused    approval_refused     this yes does not count: used, late, for another call, one's own
        ├── PreconditionFailed precondition_failed  the world is not as it was when this was planned
        ├── NotStarted         not_started          a wave before this target's did not go well
        ├── NotConfigured      not_configured       the registry holds the target, but not all that it needs
        ├── Unsupported        unsupported          this kind of target has no such port
        ├── Unreachable        unreachable          nothing answered, or it refused the connection
        ├── NameNotResolved    dns_failure
        ├── TlsFailed          tls_failed           no TLS there, or a certificate that is not to be trusted
        ├── HostKeyUnknown     host_key_unknown     no pin and no known_hosts entry for this host
        ├── HostKeyChanged     host_key_changed     the host shows another key than the one that is known
        ├── AuthRefused        auth_refused         the target did not accept our credentials
        ├── ConnectionLost     connection_lost      it went away while the operation ran
        ├── DeadlineExceeded   deadline_exceeded
        ├── CommandMissing     command_missing
        ├── CommandFailed      command_failed       exit status or signal, with the end of what it said
        │   ├── CutOff         cut_off              a change that lets no new connection in: the target takes it back
        │   ├── Locked         locked               another package manager is at work
        │   └── EndedUnknown   ended_without_status it ended, and nobody knows how: look how far it came
        ├── PrivilegeRequired  privilege_required   root is needed and sudo did not give it
        ├── NotFound           not_found            no such container, unit, file ...; names what is near
        ├── PathOutside        path_outside         not below one of the target's allowed paths
        ├── EngineUnavailable  engine_unavailable   the Docker Engine did not answer, or answered an error
        ├── EngineRefused      engine_refused       the Docker Engine said no, or can't
        ├── RolledBack         rolled_back          a change failed, and all is as it was before
        ├── RollbackFailed     rollback_failed      a change failed, and so did the way back: look at it
        ├── ServerFailed       server_failed        an HTTP target answered an error of its own (5xx)
        ├── UnreadableOutput   unreadable_output    the target answered what no parser of ours expects
        ├── OutputTooLarge     output_too_large
        └── InternalError      internal_error       a defect of the gateway; details only in its log

Codes are part of the interface: they do not change, messages may.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar


class GatewayError(Exception):
    """A failure with a code. `message` says what and where, `hint` what to do, `retryable` whether waiting helps."""

    code: ClassVar[str] = "internal_error"
    hint_default: ClassVar[str | None] = None
    retryable_default: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retryable: bool | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint if hint is not None else self.hint_default
        self.retryable = self.retryable_default if retryable is None else retryable
        self.details = details

    def as_dict(self) -> dict[str, Any]:
        """The `error` object of a Reply."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.hint:
            error["hint"] = self.hint
        error["retryable"] = self.retryable
        if self.details:
            error["details"] = self.details
        return error


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file or a setting. `line` and `column` count from 1; 0 means the file as a whole."""

    where: str
    message: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.where}:{self.line}:{self.column}" if self.line else self.where
        return f"{place}: {self.message}"


class ConfigError(GatewayError):
    code = "config_invalid"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.where, problem.line, problem.column)))
        super().__init__("\n".join(map(str, self.problems)))


class CallError(GatewayError):
    """The call as a whole is refused; nothing ran on any target."""


class UnknownTool(CallError):
    code = "unknown_tool"


class InvalidArguments(CallError):
    code = "invalid_arguments"


class UnknownTarget(CallError):
    code = "unknown_target"


class TooManyCalls(CallError):
    """Of one principal; the refusal is the same as that of a target's full queue."""

    code = "busy"
    hint_default = "Wait until some of them have ended; one call may be for many targets."
    retryable_default = True


class TooManySessions(CallError):
    code = "too_many_sessions"
    hint_default = "End sessions that are not needed (HTTP DELETE), close their streams, or use protocol 2026-07-28."
    retryable_default = True


class Unauthenticated(CallError):
    code = "unauthenticated"
    hint_default = "Call again with a credential that counts; an approval that was given is not used up."


class CredentialExpired(Unauthenticated):
    """Nobody took it back: it was for so long."""


class IdempotencyConflict(CallError):
    code = "idempotency_conflict"


class JobsUnavailable(CallError):
    code = "jobs_unavailable"
    hint_default = "Look at the gateway's state folder: free space, rights. Nothing ran."
    retryable_default = True


class AuditUnavailable(CallError):
    code = "audit_unavailable"
    hint_default = (
        "The gateway can't write its audit log, so it only does low-risk reads. Free the disk or fix the path."
    )
    retryable_default = True


class PlansUnavailable(CallError):
    code = "plans_unavailable"
    hint_default = "The gateway can't use plans.sqlite of its state folder. Free the disk or fix the file."
    retryable_default = True


class TargetError(GatewayError):
    """One target could not; the others of the same call are not affected."""


class Denied(TargetError):
    code = "denied"

    def __init__(
        self,
        message: str,
        *,
        code: str = "denied",
        hint: str | None = None,
        retryable: bool = False,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retryable=retryable, details=details)
        self.code = code  # type: ignore[misc]  # the rule that said no names its own code


class ApprovalRequired(TargetError):
    code = "approval_required"


class ApprovalRefused(TargetError):
    code = "approval_refused"


class PreconditionFailed(TargetError):
    code = "precondition_failed"


class NotStarted(TargetError):
    code = "not_started"


class NotConfigured(TargetError):
    code = "not_configured"


class Unsupported(TargetError):
    code = "unsupported"


class Unreachable(TargetError):
    code = "unreachable"
    retryable_default = True


class NameNotResolved(TargetError):
    code = "dns_failure"
    retryable_default = True


class TlsFailed(TargetError):
    code = "tls_failed"


class HostKeyUnknown(TargetError):
    code = "host_key_unknown"


class HostKeyChanged(TargetError):
    code = "host_key_changed"
    hint_default = "If the host was rebuilt, replace its pin or known_hosts entry; if not, somebody may be in between."


class AuthRefused(TargetError):
    code = "auth_refused"


class ConnectionLost(TargetError):
    code = "connection_lost"
    hint_default = "Whether the operation took effect is not known: look before you repeat it."
    retryable_default = True


class DeadlineExceeded(TargetError):
    code = "deadline_exceeded"
    retryable_default = True


class CommandMissing(TargetError):
    code = "command_missing"


class CommandFailed(TargetError):
    code = "command_failed"


class CutOff(CommandFailed):
    code = "cut_off"
    hint_default = "Wait until the target has taken it back, and look how it is."


class Locked(CommandFailed):
    code = "locked"
    hint_default = "Wait until it has ended."
    retryable_default = True


class EndedUnknown(CommandFailed):
    code = "ended_without_status"
    hint_default = (
        "The target was restarted, ran out of memory, or ended it with its login session (KillUserProcesses=). "
        "It is not known how far it came: look before calling again."
    )


class PrivilegeRequired(TargetError):
    code = "privilege_required"


class NotFound(TargetError):
    code = "not_found"


class PathOutside(TargetError):
    code = "path_outside"


class EngineUnavailable(TargetError):
    code = "engine_unavailable"
    retryable_default = True


class ServerFailed(TargetError):
    code = "server_failed"
    retryable_default = True


class EngineRefused(TargetError):
    code = "engine_refused"


class RolledBack(TargetError):
    code = "rolled_back"


class RollbackFailed(TargetError):
    code = "rollback_failed"


class UnreadableOutput(TargetError):
    code = "unreadable_output"


class OutputTooLarge(TargetError):
    code = "output_too_large"


class InternalError(TargetError):
    code = "internal_error"
    hint_default = "This is a defect of the gateway: its log has the details under the same call_id."


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that a person who wrote `name` may have meant, best first."""
    lowered = {candidate.lower(): candidate for candidate in known}
    return [lowered[match] for match in get_close_matches(name.lower(), lowered, n=count, cutoff=0.55)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names what is near `name`, else what there is (at most twelve names), else nothing."""
    names = sorted(known)
    if close := nearest(name, names):
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    if not names:
        return ""
    shown = ", ".join(names[:12])
    return f"There is: {shown}{f' and {len(names) - 12} more' if len(names) > 12 else ''}."
