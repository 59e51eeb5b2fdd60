"""How a rule says what it thinks."""

from systemmanager.request import Answer, Verdict


def allow(rule: str, reason: str) -> Verdict:
    return Verdict(rule, Answer.ALLOW, reason)


def deny(rule: str, reason: str, code: str, fix: str | None = None, *, retryable: bool = False) -> Verdict:
    return Verdict(rule, Answer.DENY, reason, code, fix, retryable)


def ask(rule: str, reason: str, fix: str | None = None) -> Verdict:
    return Verdict(rule, Answer.ASK, reason, "approval_required", fix)
