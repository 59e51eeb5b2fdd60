from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict


def sudo(request: Request) -> Verdict:
    """A use that needs root has it: the target is reached as root, or its policy lets the gateway use sudo."""
    if not request.access.privileged:
        return allow("sudo", "needs no root")
    if request.root:
        return allow("sudo", f"{request.target.id!r} is reached as root")
    policy = request.target.constraints.sudo_policy
    if policy != "none":
        return allow("sudo", f"sudo_policy of {request.target.id!r} is {policy}")
    return deny(
        "sudo",
        f"needs root on {request.target.id!r}, whose sudo_policy is none",
        "privilege_required",
        f"constraints.sudo_policy: limited on {request.target.id!r} (and `sudo -n` for its user there)",
    )
