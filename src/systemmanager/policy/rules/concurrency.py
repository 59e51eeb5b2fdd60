from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict

WAITING = 10
"""How many calls may wait for each slot of a target before more are turned away."""


def concurrency(request: Request) -> Verdict:
    """The target's queue is not full; a call that finds all slots taken waits, within its deadline."""
    slots, running = request.target.constraints.concurrency, request.load.running
    if running < slots * (1 + WAITING):
        return allow("concurrency", f"{running} calls on {request.target.id!r}, which takes {slots} at a time")
    return deny(
        "concurrency",
        f"{running} calls run or wait on {request.target.id!r}, which takes {slots} at a time",
        "busy",
        "wait, or raise constraints.concurrency",
        retryable=True,
    )
