from systemmanager.errors import Denied
from systemmanager.policy.compose.repository import repository
from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict


def stacks(request: Request) -> Verdict:
    """The repository that a stack comes from is on a host that policy.yaml names, and written with one reading."""
    url = request.arguments.get(request.operation.roles.get("repo", ""))
    if url is None:
        return allow("stacks", "names no repository")
    try:
        found = repository(str(url), request.stacks)
    except Denied as error:
        fix = (error.hint or "").removeprefix("It would need ").rstrip(".")
        return deny("stacks", error.message, error.code, fix)
    return allow("stacks", f"{found.host} is in stacks.hosts")
