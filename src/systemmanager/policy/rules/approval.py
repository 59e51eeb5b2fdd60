from systemmanager.policy.verdicts import allow, ask
from systemmanager.request import Request, Verdict


def approval(request: Request) -> Verdict:
    """A person said yes to exactly this call, where this use asks for that."""
    if not request.access.approval:
        return allow("approval", "needs no approval")
    if request.approvers:
        return allow("approval", f"approved by {request.approved_by}")
    return ask(
        "approval",
        f"{request.operation.name} is {request.access.risk} and needs a person's approval",
        "a yes to exactly this call: systemmanager approvals list",
    )
