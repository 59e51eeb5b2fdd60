from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict


def capabilities(request: Request) -> Verdict:
    """The target offers a capability that this use demands."""
    target, needed = request.target, request.access.capabilities
    if not needed:
        return allow("capabilities", "needs no capability")
    if offered := next((name for name in needed if name in target.offers), None):
        return allow("capabilities", f"{target.id!r} offers {offered}")
    return deny(
        "capabilities",
        f"{target.id!r} does not offer {' or '.join(needed)}",
        "capability_missing",
        f"{needed[0]} in capabilities of {target.id!r} in targets.yaml",
    )
