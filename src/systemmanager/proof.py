"""What `systemmanager audit` does: read the audit log, prove that it is whole, hand out the key to prove it with."""

import json
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from systemmanager import terminal
from systemmanager.audit.reading import query as query_log
from systemmanager.audit.signing import Keys, read_public
from systemmanager.audit.verify import Broken, Found, verify
from systemmanager.errors import ConfigError, Problem
from systemmanager.journal import signer_of
from systemmanager.settings import Settings, prepare_state

out = terminal.console()


def audit(given: Settings, filters: Mapping[str, str | None], limit: int) -> None:
    """The newest matching records: a table on a terminal, else JSON lines; oldest of them first."""
    path = prepare_state(given).audit_log
    try:
        found = list(islice(query_log(path, **filters), max(0, limit)))
    except OSError as error:
        raise ConfigError([Problem(str(path), f"can't be read: {error.strerror or error}")]) from error
    if out.is_terminal:
        terminal.print_audit(out, reversed(found))
        return
    for record in reversed(found):
        print(json.dumps(record))


def public_key(given: Settings) -> None:
    """Print the public key of the checkpoints in PEM."""
    print(signer_of(prepare_state(given)).public_pem(), end="")


def verified(
    given: Settings, path: Path | None, witness: Path | None, keys: Sequence[Path], *, partial: bool, as_json: bool
) -> int:
    """Check the whole log and say what was found; the exit status is 1 when something is wrong, with the first line."""
    if keys and path:
        trusted = Keys(*map(read_public, keys))
    else:
        state = prepare_state(given)
        path = path or state.audit_log
        trusted = Keys(*map(read_public, keys)) if keys else Keys(signer_of(state).public)
    begun = time.perf_counter()
    try:
        found = verify(path, trusted, witness=witness or given.audit_witness, partial=partial)
    except Broken as broken:
        print(
            json.dumps({"ok": False, "file": broken.file, "line": broken.line, "what": broken.what})
            if as_json
            else broken
        )
        return 1
    except OSError as error:
        where = str(error.filename or path)
        raise ConfigError([Problem(where, f"can't be read: {error.strerror or error}")]) from error
    took = time.perf_counter() - begun
    print(json.dumps({"ok": True, **_counts(found)}) if as_json else _said(found, took))
    return 0


def _counts(found: Found) -> dict[str, Any]:
    return {name: getattr(found, name) for name in Found.__slots__}


def _said(found: Found, took: float) -> str:
    parts = [
        f"whole: {found.records} records up to {found.last} in {found.segments} segments",
        f"{found.checkpoints} signed checkpoints, the last of {found.at}, {found.unsigned} records since",
    ]
    if found.witnessed:
        parts.append(f"{found.witnessed} of the checkpoints are known to the witness")
    if found.torn:
        parts.append(f"{found.torn} torn by a crash and marked")
    if found.witness_torn:
        parts.append("a crash cut off the last line of the witness, the next checkpoint goes below it")
    if bad := found.unreadable - found.witness_torn:
        named = ", ".join(map(str, found.bad_lines[:bad])) + (" ..." if bad > len(found.bad_lines) else "")
        parts.append(f"{bad} unreadable lines in the witness, written by others or cut off by a crash: {named}")
    return f"{'; '.join(parts)} ({found.records / max(took, 1e-9):,.0f} records/s)"
