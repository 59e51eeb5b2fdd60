"""What this gateway deployed: per target and stack its source, variables and judged configuration (0600)."""

import json
import sqlite3
from pathlib import Path

from systemmanager.errors import NotConfigured
from systemmanager.stacks import Kept, Source
from systemmanager.statefile import StateFile

SCHEMA = (
    "CREATE TABLE stacks (target TEXT, stack TEXT, repo TEXT, branch TEXT, file TEXT, given TEXT, deployed_commit TEXT,"
    " config TEXT, environment TEXT, PRIMARY KEY (target, stack))",
)


class StackRecords:
    """The file of records. Raises `NotConfigured` when it can't be used."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "stacks.sqlite"

    def _file(self) -> StateFile:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return StateFile(self._path, (SCHEMA,))

    def get(self, target: str, stack: str) -> Kept | None:
        if not self._path.exists():
            return None
        try:
            with self._file().reading() as database:
                row = database.execute(
                    "SELECT repo, branch, file, given, deployed_commit, config, environment FROM stacks"
                    " WHERE target = ? AND stack = ?",
                    (target, stack),
                ).fetchone()
        except (sqlite3.Error, OSError) as error:
            raise _unusable(error) from error
        if row is None:
            return None
        repo, branch, file, given, commit, config, environment = row
        source = Source(stack, repo, branch, file)
        return Kept(source, commit, json.loads(config), json.loads(given), json.loads(environment))

    def put(self, target: str, record: Kept) -> None:
        one = record.source
        texts = [json.dumps(value) for value in (record.config, record.environment)]
        try:
            with self._file().transaction() as database:
                database.execute(
                    "REPLACE INTO stacks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        target,
                        one.stack,
                        one.repo,
                        one.branch,
                        one.file,
                        json.dumps(record.given),
                        record.commit,
                        *texts,
                    ),
                )
        except (sqlite3.Error, OSError) as error:
            raise _unusable(error) from error

    def drop(self, target: str, stack: str) -> None:
        if not self._path.exists():
            return
        try:
            with self._file().transaction() as database:
                database.execute("DELETE FROM stacks WHERE target = ? AND stack = ?", (target, stack))
        except (sqlite3.Error, OSError) as error:
            raise _unusable(error) from error


def _unusable(error: Exception) -> NotConfigured:
    return NotConfigured(f"the gateway's record of its stacks can't be used: {error}")
