from systemmanager.policy.verdicts import allow, ask
from systemmanager.request import Request, Verdict


def approval(request: Request) -> Verdict:
    """A person said yes to exactly this call where it asks for that; two people on a target with `dual_approval`."""
    if not (request.access.approval or request.demanded):
        return allow("approval", "needs no approval")
    if request.approved:
        return allow("approval", f"approved by {request.approved_by}")
    what = f"{request.operation.name} is {request.access.risk} and"
    why = what if request.access.approval else f"{what}, as {request.demanded},"
    dual = request.target.constraints.dual_approval
    whose = f"the approval of two people on {request.target.id!r}" if dual else "a person's approval"
    return ask("approval", f"{why} needs {whose}", "a yes to exactly this call: systemmanager approvals list")
