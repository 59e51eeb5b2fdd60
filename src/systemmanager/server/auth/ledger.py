"""Which tokens were minted, and which of them count no more. A token itself is never written down."""

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from systemmanager.errors import NotFound
from systemmanager.server.auth.identity import Unavailable
from systemmanager.statefile import StateFile

FRESH = 1.0
"""Seconds for which the list of revoked tokens is taken as read."""

STALE = 5.0
"""Seconds after which a list that can't be read any more counts for nothing: then no token is accepted."""

_REMEDY = (
    "no token is accepted until it is put back from a backup; if there is none, change SYSTEMMANAGER_SHARED_SECRET, "
    "which ends every token, and restart"
)
"""A new file would know nothing of what was revoked."""

_SCHEMA = (
    """CREATE TABLE token (
    id TEXT PRIMARY KEY, subject TEXT NOT NULL, scopes TEXT NOT NULL, targets TEXT, minted REAL NOT NULL,
    expires REAL NOT NULL, revoked REAL
    ) STRICT""",
)

log = structlog.get_logger("systemmanager")


@dataclass(frozen=True, slots=True)
class Minted:
    """One token as the ledger knows it; times in seconds since 1970. `subject` is empty for one of another gateway."""

    id: str
    subject: str
    scopes: str
    targets: str | None
    minted: float
    expires: float
    revoked: float | None = None


class Ledger:
    """The minted tokens of one gateway, shared by the command line and the running gateway."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        degraded: dict[str, str] | None = None,
    ) -> None:
        """`degraded` is told when the file can't be read."""
        self._degraded = {} if degraded is None else degraded
        self._file, self._clock, self._ticks = StateFile(path, (_SCHEMA,)), clock, ticks
        self._revoked: frozenset[str] = frozenset()
        self._tried = self._read = -STALE

    def add(self, token: Minted) -> None:
        """Write down a token before it is handed out; those that have expired are forgotten."""
        with self._file.transaction() as database:
            database.execute("DELETE FROM token WHERE expires < ?", (self._clock(),))
            values = (token.id, token.subject, token.scopes, token.targets, token.minted, token.expires)
            database.execute("INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, NULL)", values)

    def revoke(self, id: str, until: float) -> Minted:
        """Revoke one token. One that this gateway did not mint is held until `until`, when it has surely expired."""
        with self._file.transaction() as database:
            now = self._clock()
            database.execute("INSERT OR IGNORE INTO token VALUES (?, '', '', NULL, ?, ?, NULL)", (id, now, until))
            database.execute("UPDATE token SET revoked = coalesce(revoked, ?) WHERE id = ?", (now, id))
            return Minted(*database.execute("SELECT * FROM token WHERE id = ?", (id,)).fetchone())

    def revoke_subject(self, subject: str) -> list[Minted]:
        """Revoke every token of one agent. Raises `NotFound` when it has none."""
        with self._file.transaction() as database:
            now = self._clock()
            changed = "UPDATE token SET revoked = ? WHERE subject = ? AND revoked IS NULL AND expires > ? RETURNING *"
            found = [Minted(*row) for row in database.execute(changed, (now, subject, now)).fetchall()]
        if not found:
            raise NotFound(f"{subject[:64]!r} has no token that is valid", hint="systemmanager token list shows them.")
        return found

    def all(self) -> list[Minted]:
        """Every token that has not expired, oldest first."""
        with self._file.reading() as database:
            rows = database.execute("SELECT * FROM token WHERE expires > ? ORDER BY minted, id", (self._clock(),))
            return [Minted(*row) for row in rows.fetchall()]

    def check(self, id: str) -> bool:
        """Whether a token is revoked: a look into a set, read again when it is older than a second.

        Raises `Unavailable` when the file could not be read for 5 seconds: what is not known is not accepted.
        """
        now = self._ticks()
        if now - self._tried >= FRESH:
            self._tried = now
            try:
                with self._file.reading() as database:
                    rows = database.execute("SELECT id FROM token WHERE revoked IS NOT NULL").fetchall()
                self._revoked, self._read = frozenset(id for (id,) in rows), now
                self._degraded.pop("tokens", None)
            except sqlite3.Error as error:
                self._problem = str(error)
                if "tokens" not in self._degraded:
                    log.error("the list of revoked tokens can't be read", path=str(self._file.path), error=str(error))
                self._degraded["tokens"] = f"{self._file.path} can't be read ({error}): {_REMEDY}"
        if now - self._read >= STALE:
            raise Unavailable(f"the list of revoked tokens can't be read: {self._problem}")
        return id in self._revoked
