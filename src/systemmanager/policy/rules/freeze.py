from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict

STILL = frozenset({"health_check", "list_targets", "explain_access"})
"""What the gateway answers about itself at all times: whoever froze it wants to see how things are, and who asks is to
learn why. No target is asked for it."""


def freeze(request: Request) -> Verdict:
    """An operator has not stopped what this use does, and no target on its way."""
    stopped, access = request.freeze, request.access
    if request.own and request.operation.name in STILL:
        return allow("freeze", "works while the gateway is frozen, too")
    if stopped.everything:
        return _frozen("the gateway is frozen", "")
    if stopped.here:
        return _frozen(f"{request.target.id!r} is frozen (--target {stopped.here})", f" --target {stopped.here!r}")
    if stopped.writes and access.mutates:
        return _frozen("calls that change something are frozen", " --writes")
    if stopped.egress and (request.operation.open_world or request.target.executor == "http"):
        return _frozen("what reaches beyond its target, and HTTP targets, are frozen", " --egress")
    return allow("freeze", "not frozen")


def _frozen(reason: str, switch: str) -> Verdict:
    return deny("freeze", reason, "frozen", f"an operator's `systemmanager thaw{switch}`")
