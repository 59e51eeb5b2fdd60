"""The schema of the audit log. One Record is one line of JSON."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal

Phase = Literal["intent", "outcome", "refused", "event"]


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the audit log.

    `intent` is written before an effect, `outcome` after it, `refused` for a call or target that the gate or the
    validation turned down, `event` for what is no call (start, stop, reload, mint). `arguments` are redacted already.
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
    registry: str | None = None
    policy: str | None = None
    elapsed_ms: int | None = None
    time: float = field(default=0.0)

    def line(self) -> bytes:
        """The record as one line; absent fields are left out, text can't break the line (JSON in ASCII)."""
        fields = {"time": f"{datetime.fromtimestamp(self.time, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"}
        for name, value in zip(_FIELDS, _values(self), strict=True):
            if value is not None and value is not False and value != "":
                fields[name] = value
        return _encode(fields).encode("ascii") + b"\n"


_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
_FIELDS = (
    "phase", "call_id", "tool", "subject", "kind", "target", "risk", "dry_run", "arguments", "approved_by", "code",
    "reason", "elapsed_ms", "registry", "policy",
)  # fmt: skip
_values = attrgetter(*_FIELDS)
