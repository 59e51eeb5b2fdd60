"""Every cause that the engine can name, the more telling families first."""

from systemmanager.diagnosis.causes import access, ending, network, resources, startup
from systemmanager.diagnosis.causes.sign import Cause

CAUSES: tuple[Cause, ...] = (
    *resources.CAUSES,
    *network.CAUSES,
    *access.CAUSES,
    *startup.CAUSES,
    *ending.CAUSES,
)
BY_CODE = {cause.code: cause for cause in CAUSES}
