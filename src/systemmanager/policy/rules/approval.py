from systemmanager.policy.verdicts import allow, ask
from systemmanager.request import Request, Verdict


def approval(request: Request) -> Verdict:
    """A person said yes to exactly this call where it asks for that; two people on a target with `dual_approval`."""
    if not (request.access.approval or request.demanded):
        return allow("approval", "needs no approval")
    needed = 2 if request.target.constraints.dual_approval else 1
    if len(request.approvers) >= needed:
        return allow("approval", f"approved by {request.approved_by}")
    what = f"{request.operation.name} is {request.access.risk} and"
    why = what if request.access.approval else f"{what}, as {request.demanded},"
    whose = "a person's approval" if needed == 1 else f"the approval of two people on {request.target.id!r}"
    return ask("approval", f"{why} needs {whose}", "a yes to exactly this call: systemmanager approvals list")
