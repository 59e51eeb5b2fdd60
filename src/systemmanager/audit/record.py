"""The schema of the audit log. One Record is one line of canonical JSON, and each line carries the hash of the one
before.

Canonical JSON is what `canonical` writes: keys sorted, no spaces, ASCII. A line is the record's fields, and of the
chain: `n` (its number, from 1), `after` (the `hash` of the record before it; 64 zeros in the first), `run` (the process
that wrote it), `signature` (in checkpoints), and last `hash`: SHA-256 over the canonical JSON of all the others.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from operator import attrgetter
from typing import Any, Literal, get_args

Phase = Literal["intent", "outcome", "refused", "event", "checkpoint"]
PHASES: tuple[str, ...] = get_args(Phase)

FORMAT = 1
"""Version of what this file says of lines; each checkpoint names it. A log of a newer one is refused and left alone."""

GENESIS = "0" * 64
"""What the first record follows."""

_BEFORE_HASH = b',"hash":"'
_TAIL = len(_BEFORE_HASH) + 64 + 2
_HEAD = b'{"after":"'


@dataclass(frozen=True, slots=True)
class Record:
    """What is written down.

    `intent` is written before an effect, `outcome` after it, `refused` for a call or target that the gate or the
    validation turned down, `event` for what is no call (start, stop, reload, mint). `arguments` are redacted already.
    A `checkpoint` is the log's own: a signature over all that stands before it.
    """

    phase: Phase
    call_id: str
    tool: str
    subject: str
    kind: str = ""
    target: str | None = None
    risk: str | None = None
    arguments: dict[str, Any] | None = None
    code: str | None = None
    reason: str | None = None
    approved_by: str | None = None
    dry_run: bool = False
    plan_id: str | None = None
    registry: str | None = None
    policy: str | None = None
    elapsed_ms: int | None = None
    time: float = field(default=0.0)

    def fields(self) -> dict[str, Any]:
        """What stands in the line; absent fields are left out."""
        fields: dict[str, Any] = {"time": timestamp(self.time)}
        for name, value in zip(_FIELDS, _values(self), strict=True):
            if value is not None and value is not False and value != "":
                fields[name] = value
        return fields


_FIELDS = (
    "phase", "call_id", "tool", "subject", "kind", "target", "risk", "dry_run", "plan_id", "arguments", "approved_by",
    "code", "reason", "elapsed_ms", "registry", "policy",
)  # fmt: skip
_values = attrgetter(*_FIELDS)


def timestamp(moment: float) -> str:
    """Seconds since 1970 as the log writes them."""
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode


def seal(fields: Mapping[str, Any]) -> tuple[bytes, str]:
    """The line of a record (it ends with a line feed) and its hash. Text can't break the line: it is ASCII."""
    body = canonical(fields).encode("ascii")
    digest = sha256(body).hexdigest()
    return b'%b,"hash":"%b"}\n' % (body[:-1], digest.encode()), digest


def sealed(line: bytes) -> bytes | None:
    """The hash that a line (without its line feed) ends with, when it fits what stands before it."""
    claimed = line[-66:-2]
    if line[-_TAIL:-66] != _BEFORE_HASH or line[-2:] != b'"}':
        return None
    if sha256(line[:-_TAIL] + b"}").hexdigest().encode() != claimed:
        return None
    return claimed


def follows(line: bytes) -> bytes:
    """The hash that a sealed line says it follows: `after` sorts before every other field."""
    return line[len(_HEAD) : len(_HEAD) + 64] if line.startswith(_HEAD) else b""


def parsed(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds, or None when it holds none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def format_of(checkpoint: Mapping[str, Any]) -> int:
    """The format that a checkpoint names; those of the first gateways name none."""
    arguments = checkpoint.get("arguments")
    found = arguments.get("format", 1) if isinstance(arguments, dict) else 1
    return found if isinstance(found, int) else 1
