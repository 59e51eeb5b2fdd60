"""A security audit: several looks at a target, one sorted list of findings."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import get_args

from pydantic import Field

from systemmanager.errors import TargetError
from systemmanager.operation import Risk, operation
from systemmanager.operations import security_checks as checks
from systemmanager.operations.security_checks import Finding, Severity
from systemmanager.ports import Page, Result, Shell

CHECKS: Mapping[str, Callable[[Shell], Awaitable[list[Finding]]]] = {
    "listening_ports": checks.listening_ports,
    "sshd_settings": checks.sshd_settings,
    "accounts": checks.accounts,
    "empty_passwords": checks.empty_passwords,
    "files": checks.files,
    "docker_socket": checks.docker_socket,
    "updates": checks.updates,
    "failed_units": checks.failed_units,
}
AT_ONCE = 4
_MOST = 300
_ORDER = {severity: rank for rank, severity in enumerate(get_args(Severity))}


class Skipped(Result):
    check: str
    reason: str


class SecurityAudit(Page):
    findings: list[Finding] = Field(description="Worst first.")
    severities: dict[str, int]
    skipped: list[Skipped] | None = Field(default=None, description="What could not be looked at.")


@operation(
    scope="security:read",
    capability="system:read",
    risk=Risk.MODERATE,
    timeout=120,
    selection="required",
)
async def audit_security(shell: Shell) -> SecurityAudit:
    """Look for security problems: open ports, sshd, accounts, file rights, Docker's socket, updates, failed units."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> list[Finding] | Skipped:
        async with slots:
            try:
                return await CHECKS[name](shell)
            except TargetError as error:
                return Skipped(check=name, reason=error.message)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(name)) for name in CHECKS]
    answers = [task.result() for task in tasks]
    findings = sorted(
        (finding for answer in answers if isinstance(answer, list) for finding in answer),
        key=lambda finding: _ORDER[finding.severity],
    )
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in _ORDER}
    return SecurityAudit(
        findings=findings[:_MOST],
        total=len(findings),
        truncated=len(findings) > _MOST,
        severities={severity: count for severity, count in counts.items() if count},
        skipped=[answer for answer in answers if isinstance(answer, Skipped)] or None,
    )
