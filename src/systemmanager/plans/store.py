"""Plans that may be carried out, in SQLite: bound to who made them, for half an hour, once.

The arguments of a call are kept as they were given, secrets too: nothing else could be carried out later. The file is
0600, what ends a plan overwrites its arguments, and nothing shows them.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systemmanager.statefile import StateFile

LIFETIME = 30 * 60
"""Seconds in which a plan may be carried out."""

KEPT = 24 * 3600
"""Seconds for which it is known what a plan was made for, so that an approval can be told what has moved since."""

MOST_EACH = 200
"""Plans that one subject may have at a time; the oldest makes room."""

_SCHEMA = (
    """CREATE TABLE plan (
    id TEXT NOT NULL, subject TEXT NOT NULL, tool TEXT NOT NULL, arguments TEXT, basis TEXT NOT NULL,
    made REAL NOT NULL, PRIMARY KEY (id, subject)
    ) STRICT""",
)


@dataclass(frozen=True, slots=True)
class Kept:
    """One plan. `arguments` are those of the call, targets included; `basis` is what has to hold."""

    id: str
    tool: str
    arguments: Mapping[str, Any]
    basis: Mapping[str, Any]


class PlanStore:
    """All plans of one gateway. Every method is one transaction; several processes may share the file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._file, self._clock = StateFile(path, (_SCHEMA,)), clock

    def keep(self, subject: str, plan: Kept) -> None:
        """Keep a plan, from now on; one that was made again is as new."""
        now = self._clock()
        with self._file.transaction() as database:
            database.execute("PRAGMA secure_delete = ON")
            database.execute("DELETE FROM plan WHERE made < ?", (now - KEPT,))
            database.execute("UPDATE plan SET arguments = NULL WHERE made <= ?", (now - LIFETIME,))
            database.execute(
                "DELETE FROM plan WHERE subject = ?1 AND rowid NOT IN "
                "(SELECT rowid FROM plan WHERE subject = ?1 ORDER BY made DESC, rowid DESC LIMIT ?2)",
                (subject, MOST_EACH - 1),
            )
            values = (plan.id, subject, plan.tool, json.dumps(plan.arguments), json.dumps(plan.basis), now)
            database.execute("INSERT OR REPLACE INTO plan VALUES (?, ?, ?, ?, ?, ?)", values)

    def find(self, id: str, subject: str) -> Kept | None:
        """A plan of this subject that may be carried out."""
        with self._file.reading() as database:
            row = database.execute(
                "SELECT tool, arguments, basis FROM plan "
                "WHERE id = ? AND subject = ? AND arguments IS NOT NULL AND made > ?",
                (id, subject, self._clock() - LIFETIME),
            ).fetchone()
        return None if row is None else Kept(id, row[0], json.loads(row[1]), json.loads(row[2]))

    def claim(self, id: str, subject: str) -> bool:
        """Use a plan up, before it is carried out: whether it was there to be used."""
        with self._file.transaction() as database:
            database.execute("PRAGMA secure_delete = ON")
            done = database.execute(
                "UPDATE plan SET arguments = NULL WHERE id = ? AND subject = ? AND arguments IS NOT NULL AND made > ?",
                (id, subject, self._clock() - LIFETIME),
            )
            return done.rowcount == 1

    def basis(self, id: str, subject: str) -> Mapping[str, Any] | None:
        """What a plan was made for, one that was used or is late, too."""
        with self._file.reading() as database:
            row = database.execute("SELECT basis FROM plan WHERE id = ? AND subject = ?", (id, subject)).fetchone()
        return None if row is None else dict(json.loads(row[0]))
