from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict


def scopes(request: Request) -> Verdict:
    """The principal holds a scope that this use demands, and its own target selector holds the target."""
    principal, needed = request.principal, request.access.scopes
    if not request.selected:
        return deny(
            "scopes",
            f"{principal.subject!r} may only use targets that match {principal.targets!r}",
            "target_not_granted",
            f"mint the token with --targets that include {request.target.id!r}",
        )
    if not needed:
        return allow("scopes", "needs no scope")
    if held := next((scope for scope in needed if scope in principal.scopes), None):
        return allow("scopes", f"{principal.subject!r} holds {held}")
    return deny(
        "scopes",
        f"{principal.subject!r} does not hold {' or '.join(needed)}",
        "scope_missing",
        f"scope {needed[0]} for {principal.subject!r}",
    )
