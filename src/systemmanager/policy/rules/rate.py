from systemmanager.operation import Risk
from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict

PER_MINUTE = {Risk.LOW: 100, Risk.MODERATE: 20, Risk.HIGH: 10, Risk.CRITICAL: 5}


def rate(request: Request) -> Verdict:
    """The principal stays below the calls a minute that the risk allows. A call on many targets counts once."""
    risk = request.access.risk
    used, limit = request.load.recent.get(risk, 0), PER_MINUTE[risk]
    if used < limit:
        return allow("rate", f"{used + 1} of {limit} {risk} calls this minute")
    return deny("rate", f"{limit} {risk} calls a minute are used up", "rate_limited", "wait a minute", retryable=True)
