"""One job while a process works on it: what the runner tells it, and what is written down of that."""

import asyncio
import sqlite3
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any

import structlog

from systemmanager.errors import JobsUnavailable
from systemmanager.following import Following
from systemmanager.jobs.store import BEGUN, MOST_OUTPUT, JobStore
from systemmanager.shaping import Reply, TargetReply

LONGEST_SAID = 200
INTERRUPTED = (
    "the gateway was stopped in the middle of it, and it is not known how far it came; look before calling again"
)
CANCELLED = ("cancelled", "ended by job_cancel while it was at work here; look how far it came before calling again")
NOT_STARTED = ("not_started", "not started: the job was ended by job_cancel before")
CUT = "[what came after this is not kept]\n"

log = structlog.get_logger("systemmanager")


def _bounded(text: str) -> str:
    """What is kept of an output, up to a whole line: half a secret is not recognised as one."""
    if len(text) <= MOST_OUTPUT:
        return text
    return text[: text.rfind("\n", 0, MOST_OUTPUT) + 1] + CUT


def spool_of(job: str, target: str) -> str:
    """A name for what a job leaves on a target; two targets may be one machine."""
    return sha256(f"{job} {target}".encode()).hexdigest()[:16]


class Job:
    """`leaving`: this process ends, and another one goes on with the job; `stopped`: somebody wants it to end;
    `at_work`: the targets where something was begun by this process."""

    def __init__(self, store: JobStore, id: str, tool: str, subject: str, targets: tuple[str, ...]) -> None:
        self._store = store
        self.id, self.tool, self.subject, self.targets = id, tool, subject, targets
        self.leaving = self.stopped = False
        self.results: dict[str, TargetReply] = {}
        self.at_work = set[str]()
        self.said = ""
        self.task: asyncio.Task[Reply] | None = None
        self._outputs: dict[str, str] = {}
        self._unwritten: set[str] = set()

    async def following(self, target: str) -> Following:
        """What ties a command on one target to this job."""
        kept = await asyncio.to_thread(self._store.kept, self.id, target)
        self._outputs[target] = ""  # a command that is taken up tells all of its output again

        def heard(text: str) -> None:
            if self._outputs[target].endswith(CUT):
                return
            self._outputs[target] = _bounded(self._outputs[target] + text)
            self._unwritten.add(target)

        def keep(name: str, value: Any) -> None:
            self._store.keep(self.id, target, name, value)
            kept[name] = value

        return Following(id=spool_of(self.id, target), heard=heard, kept=kept, keep=keep, leaving=lambda: self.leaving)

    async def begins_on(self, target: str) -> None:
        """Work begins that can't be done twice: on the disk before it does. Raises `JobsUnavailable`."""
        try:
            await asyncio.to_thread(self._store.keep, self.id, target, BEGUN, True)
        except sqlite3.Error as error:
            raise JobsUnavailable(f"the jobs can't be written: {error}") from error

    async def at_work_before(self, targets: Collection[str]) -> set[str]:
        """Of these, where an earlier process had begun something that is gone on with. Raises `JobsUnavailable`."""
        try:
            return {id for id in targets if await asyncio.to_thread(self._store.kept, self.id, id)}
        except sqlite3.Error as error:
            raise JobsUnavailable(f"the jobs can't be read: {error}") from error

    async def cut_short(self) -> list[str]:
        """The targets on which such work had begun and not ended. What can't be read is taken for begun."""
        try:
            begun = await asyncio.to_thread(self._store.begun, self.id)
        except sqlite3.Error as error:
            log.error("the state of a job can't be read", job=self.id, error=str(error))
            begun = set(self.targets)
        return sorted(begun - self.results.keys())

    def tell(self, message: str) -> None:
        self.said = message[:LONGEST_SAID]

    async def ended_on(self, result: TargetReply) -> None:
        """One target has ended and is not to be done again. Never raises: what can't be written is asked for again."""
        self.results[result.target] = result
        await self._try(self._store.ended_on, self.id, result.target, result.as_dict())

    async def flush(self) -> None:
        """Bring to the disk what was heard and told since the last time. Never raises."""
        outputs: Mapping[str, str] = {target: self._outputs[target] for target in self._unwritten}
        self._unwritten.clear()
        await self._try(self._store.says, self.id, self.said, outputs)

    async def end(self, state: str) -> None:
        """Never raises."""
        await self.flush()
        await self._try(self._store.end, self.id, state)

    async def _try(self, write: Any, *values: Any) -> None:
        try:
            await asyncio.to_thread(write, *values)
        except sqlite3.Error as error:
            log.error("the state of a job can't be written", job=self.id, error=str(error))

    def so_far(self) -> Reply:
        """The answer while it runs."""
        about = {"id": self.id, "state": "running", "done": len(self.results), "of": len(self.targets)}
        if self.said:
            about["said"] = self.said
        return Reply(self.id, self.tool, list(self.results.values()), job=about)

    def cut_off(self) -> Reply:
        """The answer of one that was ended before all its targets were: on purpose, or because nobody goes on with it.
        Of the first kind it is known where it was at work."""
        left = [id for id in self.targets if id not in self.results]
        if not self.stopped:
            errors = dict.fromkeys(left, ("interrupted", INTERRUPTED))
        else:
            errors = {id: CANCELLED if id in self.at_work else NOT_STARTED for id in left}
        replies = [TargetReply(id, error=_error(*error)) for id, error in errors.items()]
        return Reply(self.id, self.tool, [*self.results.values(), *replies])


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "retryable": False}
