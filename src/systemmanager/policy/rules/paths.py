from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict


def inside(path: str, roots: tuple[str, ...]) -> bool:
    """Whether an absolute, dot-free path is one of `roots` or below one; by whole names, not by prefix."""
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)


def paths(request: Request) -> Verdict:
    """The path is below one of the target's. Links are the executor's matter: it resolves them on the target."""
    parameter = request.operation.roles.get("path")
    path = None if parameter is None else request.arguments.get(parameter)
    if path is None:
        return allow("paths", "names no path")
    roots = request.target.constraints.paths
    if ".." not in path.split("/") and inside(path, roots):
        return allow("paths", f"{path} is below an allowed path")
    allowed = ", ".join(roots) or "none"
    return deny(
        "paths",
        f"{path} is outside the paths of {request.target.id!r} (allowed: {allowed})",
        "path_outside",
        f"{path} in constraints.paths of {request.target.id!r}",
    )
