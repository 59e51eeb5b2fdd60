import re

from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict
from systemmanager.target import EXECUTOR_PORTS


def ability(request: Request) -> Verdict:
    """The target is of a kind that can do this at all, and lacks nothing that its registry entry names."""
    target, port = request.target, request.operation.port
    if port != "Fleet" and port not in EXECUTOR_PORTS[target.executor]:
        kinds = " or ".join(kind for kind, ports in EXECUTOR_PORTS.items() if port in ports)
        return deny(
            "ability",
            f"{request.operation.name} needs {port}, which {target.id!r} ({target.executor}) does not have",
            "unsupported",
            f"a target of kind {kinds}; list_targets shows the kinds",
        )
    if request.fault:
        name = re.search(r"\$\{\w+\}", request.fault)
        value = f"a value for {name[0]}" if name else "that value"
        return deny("ability", request.fault, "not_configured", f"{value}, and a reload of the gateway (SIGHUP)")
    return allow("ability", f"a target of kind {target.executor} can do it")
