from systemmanager.policy.verdicts import allow, ask
from systemmanager.request import Request, Verdict


def approval(request: Request) -> Verdict:
    """A person said yes to exactly this call, where this use asks for that."""
    if not request.access.approval:
        return allow("approval", "needs no approval")
    if request.approved_by:
        return allow("approval", f"approved by {request.approved_by}")
    how = "no client can give it yet" if request.principal.kind != "operator" else "answer the question, or --yes"
    return ask(
        "approval",
        f"{request.operation.name} is {request.access.risk} and needs a person's approval; {how}",
        f"run it at the gateway's terminal: systemmanager call {request.operation.name} ...",
    )
