"""Jobs in SQLite: what was asked, how far it is, what it said, and how each target ended.

A job has the id of its call. What is needed to go on after a crash stands in it, too: the file is the gateway's alone
(0600), and what is shown of a job is the redacted part.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from systemmanager.statefile import StateFile

State = Literal["running", "done", "failed", "cancelled", "interrupted"]

KEPT = 7 * 24 * 3600.0
"""Seconds after its end for which a job and its output are kept."""

KEY_KEPT = 24 * 3600.0
"""Seconds after its beginning for which the same idempotency key means the same job."""

MOST_OUTPUT = 1024 * 1024
"""Characters of output that are kept of one target, the first ones."""

BEGUN = "begun"
"""What is kept of a target whose work has begun and is not to be done again."""

_FIRST = (
    """CREATE TABLE job (
    id TEXT PRIMARY KEY, subject TEXT NOT NULL, tool TEXT NOT NULL, shown TEXT NOT NULL, targets TEXT NOT NULL,
    digest TEXT NOT NULL, key TEXT, asked TEXT NOT NULL, owner TEXT NOT NULL, state TEXT NOT NULL,
    started REAL NOT NULL, ended REAL, done INTEGER NOT NULL DEFAULT 0, said TEXT NOT NULL DEFAULT '',
    stop INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    "CREATE INDEX job_of ON job (subject, key)",
    """CREATE TABLE result (
    job TEXT NOT NULL, target TEXT NOT NULL, reply TEXT NOT NULL,
    PRIMARY KEY (job, target)
    ) STRICT""",
    """CREATE TABLE kept (
    job TEXT NOT NULL, target TEXT NOT NULL, name TEXT NOT NULL,
    value TEXT NOT NULL, PRIMARY KEY (job, target, name)
    ) STRICT""",
    """CREATE TABLE output (
    job TEXT NOT NULL, target TEXT NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (job, target)
    ) STRICT""",
)
_CHANGED = (
    "ALTER TABLE job ADD COLUMN changed REAL NOT NULL DEFAULT 0",
    "UPDATE job SET changed = COALESCE(ended, started)",
)


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job as it stands on the disk. `shown` are its redacted arguments, `asked` is what a new process needs to go
    on; `stop` says that somebody wants it to end; `changed`: when anything of it last did. Times in
    seconds since 1970."""

    id: str
    subject: str
    tool: str
    shown: Mapping[str, Any]
    targets: tuple[str, ...]
    digest: str
    key: str | None
    asked: Mapping[str, Any]
    owner: str
    state: State
    started: float
    ended: float | None
    done: int
    said: str
    stop: bool
    changed: float


def _row(values: Sequence[Any]) -> JobRow:
    id, subject, tool, shown, targets, digest, key, asked, owner, state, started, ended, done, said, stop, changed = (
        values
    )
    return JobRow(
        id, subject, tool, json.loads(shown), tuple(json.loads(targets)), digest, key, json.loads(asked), owner, state,
        started, ended, done, said, bool(stop), changed,
    )  # fmt: skip


class JobStore:
    """All jobs of one gateway. Every method is one transaction; several processes may share the file.

    All errors are `sqlite3.Error`.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._file, self.clock = StateFile(path, (_FIRST, _CHANGED)), clock

    def begin(self, job: JobRow) -> JobRow:
        """Write a new job down, before anything of it is done; answers the one that has its key already, if any."""
        with self._file.transaction() as database:
            if job.key is not None and (found := self._of_key(database, job.subject, job.key)):
                return found
            values = (
                job.id, job.subject, job.tool, json.dumps(job.shown), json.dumps(job.targets), job.digest, job.key,
                json.dumps(job.asked), job.owner, job.state, job.started, job.ended, job.done, job.said, int(job.stop),
                job.changed,
            )  # fmt: skip
            database.execute("INSERT INTO job VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", values)
            self._forget(database)
        return job

    def _forget(self, database: sqlite3.Connection) -> None:
        """Jobs that ended long ago, and all that belongs to none."""
        database.execute("DELETE FROM job WHERE ended < ?", (self.clock() - KEPT,))
        database.execute("DELETE FROM result WHERE job NOT IN (SELECT id FROM job)")
        database.execute("DELETE FROM kept WHERE job NOT IN (SELECT id FROM job)")
        database.execute("DELETE FROM output WHERE job NOT IN (SELECT id FROM job)")

    def of_key(self, subject: str, key: str) -> JobRow | None:
        """The job that a subject began with this idempotency key within the last day."""
        with self._file.reading() as database:
            return self._of_key(database, subject, key)

    def _of_key(self, database: sqlite3.Connection, subject: str, key: str) -> JobRow | None:
        found = database.execute(
            "SELECT * FROM job WHERE subject = ? AND key = ? AND started > ? ORDER BY started DESC LIMIT 1",
            (subject, key, self.clock() - KEY_KEPT),
        ).fetchone()
        return found and _row(found)

    def one(self, id: str) -> JobRow | None:
        with self._file.reading() as database:
            found = database.execute("SELECT * FROM job WHERE id = ?", (id,)).fetchone()
        return found and _row(found)

    def all(self, subject: str | None = None, state: str | None = None) -> list[JobRow]:
        """Newest first; of one subject, in one state."""
        with self._file.reading() as database:
            rows = database.execute(
                "SELECT * FROM job WHERE (?1 IS NULL OR subject = ?1) AND (?2 IS NULL OR state = ?2) "
                "ORDER BY started DESC, id",
                (subject, state),
            ).fetchall()
        return [_row(row) for row in rows]

    def results(self, id: str) -> dict[str, dict[str, Any]]:
        """How each target ended that has ended."""
        with self._file.reading() as database:
            rows = database.execute("SELECT target, reply FROM result WHERE job = ?", (id,)).fetchall()
        return {target: json.loads(reply) for target, reply in rows}

    def kept(self, id: str, target: str) -> dict[str, Any]:
        """What the work on one target remembered."""
        with self._file.reading() as database:
            rows = database.execute("SELECT name, value FROM kept WHERE job = ? AND target = ?", (id, target))
            return {name: json.loads(value) for name, value in rows.fetchall()}

    def begun(self, id: str) -> set[str]:
        """The targets on which work has begun that can't be done twice."""
        with self._file.reading() as database:
            rows = database.execute("SELECT target FROM kept WHERE job = ? AND name = ?", (id, BEGUN)).fetchall()
        return {target for (target,) in rows}

    def output(self, id: str, target: str) -> str:
        with self._file.reading() as database:
            found = database.execute("SELECT text FROM output WHERE job = ? AND target = ?", (id, target)).fetchone()
        return found[0] if found else ""

    def ended_on(self, id: str, target: str, reply: Mapping[str, Any]) -> None:
        """One target has ended; it is not done again."""
        with self._file.transaction() as database:
            database.execute("INSERT OR REPLACE INTO result VALUES (?, ?, ?)", (id, target, json.dumps(reply)))
            database.execute(
                "UPDATE job SET done = (SELECT count(*) FROM result WHERE job = ?1), changed = ?2 WHERE id = ?1",
                (id, self.clock()),
            )

    def keep(self, id: str, target: str, name: str, value: Any) -> None:
        with self._file.transaction() as database:
            database.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", (id, target, name, json.dumps(value)))

    def says(self, id: str, said: str, outputs: Mapping[str, str]) -> None:
        """What was last told of a job, and the whole output so far of some of its targets."""
        with self._file.transaction() as database:
            database.execute(
                "UPDATE job SET said = ?1, changed = ?2 WHERE id = ?3 AND said <> ?1", (said, self.clock(), id)
            )
            for target, text in outputs.items():
                database.execute("INSERT OR REPLACE INTO output VALUES (?, ?, ?)", (id, target, text))

    def stop(self, id: str) -> None:
        """Somebody wants it to end; the process that runs it looks for that."""
        with self._file.transaction() as database:
            database.execute("UPDATE job SET stop = 1 WHERE id = ? AND state = 'running'", (id,))

    def stopped(self, owner: str) -> list[str]:
        """The running jobs of one process that somebody wants to end."""
        with self._file.reading() as database:
            rows = database.execute("SELECT id FROM job WHERE owner = ? AND state = 'running' AND stop", (owner,))
            return [id for (id,) in rows.fetchall()]

    def end(self, id: str, state: State) -> None:
        """The whole job has ended; what it needed to go on is forgotten."""
        with self._file.transaction() as database:
            database.execute(
                "UPDATE job SET state = ?1, ended = ?2, changed = ?2, asked = '{}' WHERE id = ?3",
                (state, self.clock(), id),
            )
            database.execute("DELETE FROM kept WHERE job = ?", (id,))

    def adopt(self, id: str, before: str, owner: str) -> bool:
        """Take over a running job of a process that is gone; False when another one was quicker."""
        with self._file.transaction() as database:
            changed = database.execute(
                "UPDATE job SET owner = ? WHERE id = ? AND owner = ? AND state = 'running'", (owner, id, before)
            )
            return changed.rowcount == 1
