from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict


def hardening(request: Request) -> Verdict:
    """A gateway whose sandbox is not whole changes nothing, where its settings want that."""
    if not request.access.mutates:
        return allow("hardening", "changes nothing")
    if not request.weakened:
        return allow("hardening", "no part of the sandbox that is required is missing")
    return deny(
        "hardening",
        f"the gateway's sandbox lacks {', '.join(request.weakened)}, and its settings require all of it",
        "not_hardened",
        "the unit as it was installed, without drop-ins that weaken it: systemctl cat systemmanager-mcp",
    )
