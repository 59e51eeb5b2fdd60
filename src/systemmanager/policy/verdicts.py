"""How a rule says what it thinks."""

from collections.abc import Sequence

from systemmanager.request import Answer, Decision, Verdict


def allow(rule: str, reason: str) -> Verdict:
    return Verdict(rule, Answer.ALLOW, reason)


def deny(rule: str, reason: str, code: str, fix: str | None = None, *, retryable: bool = False) -> Verdict:
    return Verdict(rule, Answer.DENY, reason, code, fix, retryable)


def ask(rule: str, reason: str, fix: str | None = None) -> Verdict:
    return Verdict(rule, Answer.ASK, reason, "approval_required", fix)


def held(decisions: Sequence[Decision], verdict: Verdict) -> list[Decision]:
    """The decisions when nothing of a call may run, so that it is not done in part; what was denied stays denied."""
    return [one if one.answer is Answer.DENY else against(one, verdict) for one in decisions]


def against(decision: Decision, verdict: Verdict) -> Decision:
    """The decision that one more verdict makes of another."""
    others = (one for one in decision.verdicts if one.answer is Answer.ALLOW and one.rule != verdict.rule)
    return Decision((*others, verdict), None)
