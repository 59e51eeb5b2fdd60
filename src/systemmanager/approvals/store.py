"""Approval requests and their answers, in SQLite, so that they survive a restart and are redeemed once.

A request is bound to the SHA-256 of everything that was asked (`digest`): who, which tool, on which targets, with which
arguments, under which policy and registry. A yes for one digest is no yes for another. What is kept and shown is the
redacted question: the store holds no secret.
"""

import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from systemmanager.approvals.people import same
from systemmanager.errors import ApprovalRefused, NotFound
from systemmanager.statefile import StateFile

LIFETIME = 30 * 60
"""Seconds that a request waits for its answers, and an approved one for its use."""

KEPT = 7 * 24 * 3600
"""Seconds after which an ended request is forgotten; the audit log remembers it."""

MOST_PENDING = 20
"""Requests of one subject that may wait at a time; more are a flood."""

_SCHEMA = (
    """CREATE TABLE request (
    id TEXT PRIMARY KEY, digest TEXT NOT NULL, subject TEXT NOT NULL, tool TEXT NOT NULL, question TEXT NOT NULL,
    needed INTEGER NOT NULL, created REAL NOT NULL, expires REAL NOT NULL, used REAL
    ) STRICT""",
    """CREATE TABLE answer (
    request TEXT NOT NULL REFERENCES request (id), person TEXT NOT NULL, approved INTEGER NOT NULL,
    channel TEXT NOT NULL, given REAL NOT NULL, PRIMARY KEY (request, person)
    ) STRICT""",
)

State = Literal["pending", "approved", "denied", "used", "expired"]


@dataclass(frozen=True, slots=True)
class Given:
    """One person's answer."""

    person: str
    approved: bool
    channel: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One approval request as it stands. `question` is all that was asked, redacted; times in seconds since 1970."""

    id: str
    digest: str
    subject: str
    tool: str
    question: Mapping[str, Any]
    needed: int
    created: float
    expires: float
    answers: tuple[Given, ...]
    state: State

    @property
    def by_own_hand(self) -> bool:
        """Whether who asked may answer at the gateway's socket. The local operator may, for what their client asked
        over stdio: a client can't open that socket. It is still one person, so not where two have to say yes."""
        return self.question.get("kind") == "operator" and self.needed == 1

    @property
    def refuser(self) -> str:
        """Who said no; "" when nobody did."""
        return next((answer.person for answer in self.answers if not answer.approved), "")

    @property
    def people(self) -> tuple[str, ...]:
        """Who said yes."""
        return tuple(answer.person for answer in self.answers if answer.approved)


def _unknown(id: str) -> NotFound:
    return NotFound(f"there is no approval {id[:40]!r}", hint="systemmanager approvals list shows them.")


def digest_of(question: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of a question (sorted keys, no spaces, UTF-8), as hexadecimal text."""
    canonical = json.dumps(question, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class ApprovalStore:
    """All requests of one gateway. Every method is one transaction; several processes may share the file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._file, self.clock = StateFile(path, (_SCHEMA,)), clock

    def ask(
        self,
        subject: str,
        tool: str,
        question: Mapping[str, Any],
        digest: str,
        *,
        needed: int = 1,
        lifetime: float = LIFETIME,
    ) -> tuple[Asked, bool]:
        """The open request for exactly this digest, and whether it was made just now.

        Raises `ApprovalRefused` on a flood, and for what somebody has said no to: who asks again wears people down.
        """
        now = self.clock()
        with self._file.transaction() as database:
            rows = database.execute(
                "SELECT id FROM request WHERE subject = ? AND used IS NULL AND expires > ?", (subject, now)
            )
            open_ones = [self._read(database, id) for (id,) in rows.fetchall()]
            for asked in open_ones:
                if asked.digest == digest and asked.state == "denied":
                    raise ApprovalRefused(
                        f"{asked.refuser} has said no to this call; it is not asked again for a while"
                    )
                if asked.digest == digest:
                    return asked, False
            if sum(asked.state == "pending" for asked in open_ones) >= MOST_PENDING:
                raise ApprovalRefused(
                    f"{MOST_PENDING} approval requests of {subject!r} are waiting already", retryable=True
                )
            id = secrets.token_hex(8)
            values = (id, digest, subject, tool, json.dumps(question), needed, now, now + lifetime)
            database.execute("INSERT INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", values)
            return self._read(database, id), True

    def answer(self, id: str, person: str, approved: bool, channel: str, *, digest: str | None = None) -> Asked:
        """Write down one person's answer.

        Raises `ApprovalRefused` for one's own request (but see `by_own_hand`), a second answer, another digest than
        asked, or a late one.
        """
        with self._file.transaction() as database:
            asked = self._read(database, id)
            if asked.state != "pending":
                raise ApprovalRefused(f"approval {id} is {asked.state} already")
            if same(person, asked.subject) and not (channel == "operator" and asked.by_own_hand):
                raise ApprovalRefused(f"{person!r} asked for {id} and can't answer it")
            if digest is not None and digest != asked.digest:
                raise ApprovalRefused(f"the answer to {id} is for another digest")
            if any(same(given.person, person) for given in asked.answers):
                raise ApprovalRefused(f"{person!r} has answered {id} already; it needs {asked.needed} different people")
            values = (id, person, int(approved), channel, self.clock())
            database.execute("INSERT INTO answer VALUES (?, ?, ?, ?, ?)", values)
            return self._read(database, id)

    def redeem(self, id: str, subject: str, digest: str) -> Asked:
        """Use an approval up, for exactly the call it was given for; a pending one is answered as it is.

        Raises `ApprovalRefused` in every other case, `NotFound` for another's.
        """
        with self._file.transaction() as database:
            asked = self._read(database, id)
            if asked.subject != subject:
                raise _unknown(id)
            if asked.digest != digest:
                raise ApprovalRefused(
                    f"approval {id} is for another call, or policy or targets have changed since",
                    hint="Call without approval_id to ask anew.",
                )
            if asked.state == "pending":
                return asked
            if asked.state != "approved":
                raise ApprovalRefused(f"approval {id} is {asked.state}")
            database.execute("UPDATE request SET used = ? WHERE id = ?", (self.clock(), id))
            return self._read(database, id)

    def give_back(self, id: str) -> None:
        """Make a used approval one that can be used. Only for whoever has used it up, and has done nothing with it."""
        with self._file.transaction() as database:
            database.execute("UPDATE request SET used = NULL WHERE id = ?", (id,))

    def get(self, id: str) -> Asked:
        with self._file.transaction() as database:
            return self._read(database, id)

    def all(self, state: State | None = None) -> list[Asked]:
        """Requests, oldest first; those that ended long ago are forgotten."""
        with self._file.transaction() as database:
            old = (self.clock() - KEPT,)
            database.execute("DELETE FROM answer WHERE request IN (SELECT id FROM request WHERE expires < ?)", old)
            database.execute("DELETE FROM request WHERE expires < ?", old)
            ids = database.execute("SELECT id FROM request ORDER BY created, id").fetchall()
            found = [self._read(database, id) for (id,) in ids]
        return [asked for asked in found if state is None or asked.state == state]

    def _read(self, database: sqlite3.Connection, id: str) -> Asked:
        row = database.execute("SELECT * FROM request WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise _unknown(id)
        _, digest, subject, tool, question, needed, created, expires, used = row
        answers = tuple(
            Given(person, bool(approved), channel)
            for person, approved, channel in database.execute(
                "SELECT person, approved, channel FROM answer WHERE request = ? ORDER BY rowid", (id,)
            )
        )
        state = self._state(answers, needed, expires, used)
        return Asked(id, digest, subject, tool, json.loads(question), needed, created, expires, answers, state)

    def _state(self, answers: tuple[Given, ...], needed: int, expires: float, used: float | None) -> State:
        if used is not None:
            return "used"
        if any(not given.approved for given in answers):
            return "denied"
        if self.clock() >= expires:
            return "expired"
        return "approved" if len(answers) >= needed else "pending"
