from systemmanager.policy.verdicts import allow, ask
from systemmanager.request import Request, Verdict


def taint(request: Request) -> Verdict:
    """Who has just read text that others wrote may act on what it says: a change then needs a person's yes."""
    ago, lasts = request.tainted, request.taint_lasts
    if not request.access.mutates:
        return allow("taint", "changes nothing")
    if ago is None or not lasts or ago >= lasts:
        return allow("taint", "no text from targets was read of late")
    if request.approved:
        return allow("taint", f"approved by {request.approved_by}")
    if request.access.approval or request.demanded:
        return allow("taint", "needs a person's approval in any case")
    return ask(
        "taint",
        f"{request.principal.subject!r} has read text from targets {max(ago, 0):.0f} s ago, which may hold "
        f"instructions of others; for {lasts / 60:g} min after that, changes need a person's approval",
        f"a yes to exactly this call, or {lasts - ago:.0f} s without reading such text",
    )
