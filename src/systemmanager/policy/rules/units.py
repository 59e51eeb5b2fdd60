from fnmatch import fnmatchcase

from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict

_SUFFIXES = (
    ".service", ".socket", ".target", ".timer", ".mount", ".automount", ".path", ".slice", ".scope", ".swap", ".device",
)  # fmt: skip


def _full(name: str) -> str:
    """A unit's whole name, as systemctl completes it: without a suffix that is a unit type, `.service` is meant."""
    return name if name.endswith((*_SUFFIXES, "*")) else f"{name}.service"


def units(request: Request) -> Verdict:
    """A unit that is changed matches the target's list, where it has one. Names without suffix mean `.service`."""
    parameter = request.operation.roles.get("unit")
    unit = None if parameter is None else request.arguments.get(parameter)
    if unit is None or not request.access.mutates:
        return allow("units", "changes no unit")
    allowed = request.target.constraints.units
    if allowed is None:
        return allow("units", f"{request.target.id!r} does not limit units")
    if any(fnmatchcase(_full(unit), _full(pattern)) for pattern in allowed):
        return allow("units", f"{unit} is in constraints.units")
    return deny(
        "units",
        f"{unit} is not among the units that may be changed on {request.target.id!r}",
        "unit_not_allowed",
        f"{unit} in constraints.units of {request.target.id!r}",
    )
