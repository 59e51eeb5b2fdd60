"""Jobs: calls that outlast their caller. How far they are, what they said, how they ended, and ending them."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from systemmanager.operation import Risk, operation
from systemmanager.params import Cursor, Limit
from systemmanager.ports import Fleet, Foreign, FreeText, Page, Result
from systemmanager.scopes import CHANGING

JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
JobState = Literal["running", "done", "failed", "cancelled", "interrupted"]

PAGE = 16_000
"""Characters of output in one answer."""


class JobRow(Result):
    job_id: str
    tool: str
    state: str = Field(description="running, done, failed, cancelled or interrupted")
    by: str
    targets: int
    ended_on: int = Field(description="So many targets have ended.")
    started: str
    ended: str | None = None
    said: str | None = Field(default=None, description="What was last told of it.")


class JobList(Page):
    jobs: list[JobRow]


class JobStatus(JobRow):
    arguments: dict[str, Any]
    results: list[dict[str, Any]] | None = None
    untrusted_results: list[dict[str, Annotated[Any, Foreign()]]] | None = Field(
        default=None, description="Those that hold text which others wrote."
    )
    summary: dict[str, Any] | None = Field(default=None, description="How many ended how, of several targets.")


class JobOutput(Result):
    job_id: str
    state: str
    target: str
    output: FreeText
    total: int = Field(description="Characters so far.")
    next: str | None = Field(default=None, description="Pass as `cursor` to go on; while it runs, more may come.")


@operation(scope=None, risk=Risk.LOW)
async def list_jobs(
    fleet: Fleet, state: JobState | None = None, limit: Limit = 50, cursor: Cursor | None = None
) -> JobList:
    """Your jobs, newest first; ended ones are kept for 7 days."""
    rows = await fleet.jobs(state)
    start = int(cursor or 0)
    more = start + limit < len(rows)
    shown = [JobRow(**row) for row in rows[start : start + limit]]
    return JobList(jobs=shown, total=len(rows), truncated=more, next=str(start + limit) if more else None)


@operation(scope=None, risk=Risk.LOW)
async def job_status(fleet: Fleet, job_id: JobId) -> JobStatus:
    """How one job is, and the results of the targets that have ended."""
    return JobStatus(**await fleet.job(job_id))


@operation(scope=None, risk=Risk.LOW)
async def job_output(
    fleet: Fleet, job_id: JobId, on: Annotated[str, Field(max_length=200)] | None = None, cursor: Cursor | None = None
) -> JobOutput:
    """What the commands of a job have said, from `cursor` on. `on`: one target of several."""
    found = await fleet.job_output(job_id, on)
    text = found.pop("text")
    start = min(int(cursor or 0), len(text))
    end = min(start + PAGE, len(text))
    more = end < len(text) or found["state"] == "running"
    return JobOutput(**found, output=text[start:end], total=len(text), next=str(end) if more else None)


@operation(scope=CHANGING, risk=Risk.MODERATE, timeout=20)
async def job_cancel(fleet: Fleet, job_id: JobId) -> JobStatus:
    """End a job of yours; what it runs on targets is ended, too. What is done already stays done."""
    return JobStatus(**await fleet.cancel_job(job_id))
