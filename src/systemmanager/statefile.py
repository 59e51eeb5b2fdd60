"""One SQLite file of the state folder: survives a restart, shared by processes, each change whole or not at all."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class StateFile:
    """Opened for each transaction, so that nothing is held between calls. All errors are `sqlite3.Error`.

    `steps` are the file's versions, oldest first: what each one changes, as statements. A step that was released once
    stays as it is; a change is a new step after it.
    """

    def __init__(self, path: Path, steps: Sequence[Sequence[str]]) -> None:
        """Make the file if there is none, bring an older one up to date whole or not at all; a newer one is left
        alone."""
        self.path = path
        with self.transaction() as database:
            database.execute("SELECT name FROM sqlite_master").fetchall()  # a torn file says so now, not in a call
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if found > len(steps):
                raise sqlite3.DatabaseError("it was written by a newer version of the gateway: start that one")
            for statement in (statement for step in steps[found:] for statement in step):
                database.execute(statement)
            if found < len(steps):
                database.execute(f"PRAGMA user_version = {len(steps)}")
        path.chmod(0o600)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes take effect together at the end, or not at all when it raises."""
        database = sqlite3.connect(self.path, timeout=5, isolation_level=None)
        try:
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")
        finally:
            database.close()  # without the COMMIT that is a rollback

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for looking only: it waits for no writer longer than a quarter of a second."""
        database = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, timeout=0.25, isolation_level=None)
        try:
            yield database
        finally:
            database.close()
