"""One SQLite file of the state folder: survives a restart, shared by processes, each change whole or not at all."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class StateFile:
    """Opened for each transaction, so that nothing is held between calls. All errors are `sqlite3.Error`."""

    def __init__(self, path: Path, version: int, schema: Sequence[str]) -> None:
        """Make the file if there is none; one that a newer version wrote is left alone."""
        self.path = path
        with self.transaction() as database:
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if found > version:
                raise sqlite3.DatabaseError(f"{path} was written by a newer version of the gateway")
            for statement in (*schema, f"PRAGMA user_version = {version}") if found == 0 else ():
                database.execute(statement)
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
