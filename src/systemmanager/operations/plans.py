"""Carrying out what was planned."""

from typing import Annotated

from pydantic import Field, StringConstraints

from systemmanager.errors import NotFound
from systemmanager.operation import Risk, operation
from systemmanager.ports import Fleet, Result
from systemmanager.scopes import CHANGING

Wait = Annotated[float, Field(ge=0, le=300, description="Seconds, then a job.")]
PlanId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), Field(description="From a dry_run.")]
GONE = "there is no such plan: it was carried out, is older than 30 minutes, or is not yours"


class Applied(Result):
    """Never made: a plan that is there is answered as the tool that it is a plan of."""


@operation(
    scope=CHANGING,
    risk=Risk.CRITICAL,
    approval=False,
    idempotent=False,
)
async def apply_plan(fleet: Fleet, plan_id: PlanId, wait: Wait | None = None) -> Applied:
    """Carry out what a dry_run planned, once, within 30 minutes, if all is still as it was then; otherwise nothing
    runs."""
    # The gateway puts the planned call in the place of this one before it decides. There was none.
    raise NotFound(GONE, hint="Look at a new plan: the same call with dry_run=true.")
