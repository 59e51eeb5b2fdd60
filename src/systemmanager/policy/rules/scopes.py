from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict


def scopes(request: Request) -> Verdict:
    """The principal holds, on this target, a scope that this use demands."""
    principal, needed, id = request.principal, request.access.scopes, request.target.id
    if not request.granted:
        fix = f"a token that is minted with --targets that include {id!r}"
        if principal.kind != "token":
            fix = f"a grant for {principal.subject!r} on {id!r} in policy.yaml"
        return deny("scopes", f"{principal.subject!r} holds no grant on {id!r}", "target_not_granted", fix)
    if not needed:
        return allow("scopes", "needs no scope")
    if held := next((scope for scope in needed if any(scope in grant.scopes for grant in request.granted)), None):
        return allow("scopes", f"{principal.subject!r} holds {held}")
    return deny(
        "scopes",
        f"{principal.subject!r} does not hold {' or '.join(needed)} on {id!r}",
        "scope_missing",
        f"scope {needed[0]} for {principal.subject!r} on {id!r}",
    )
