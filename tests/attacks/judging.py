"""What has to be so after every attack."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.attacks.arena import CANARY, HELD, Arena
from tests.attacks.attackers import Told
from tests.attacks.catalogue import Case
from tests.serving import SECRET

RAW = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Written from Unicode's tables, not taken from the gateway: C0, C1, bidi controls, zero width, tag characters.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
DECISIONS = ("refused", "intent")
EVENTS = ("credential refused", "reload refused", "approval answer refused")


@dataclass
class Finding:
    """What came of one attack. `accepted`: it was not refused as it should; `wrong` says everything that is not so."""

    accepted: bool = False
    effects: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def judge(case: Case, told: Told, arena: Arena, log: str) -> Finding:
    finding = Finding(effects=[*arena.left(), *told.effects])
    _judge_codes(case, told, finding)
    _judge_effects(case, told, arena, finding)
    _judge_sizes(case, told, arena, finding)
    records = _records(arena)
    decisions = sum(_times(one) for one in records if one["phase"] in DECISIONS or one.get("tool") in EVENTS)
    if decisions != (wanted := told.decisions or case.records):
        finding.wrong.append(f"{decisions} decisions on record, not {wanted}: {records}")
    if case.given.get("at_the_gate") and any(one["phase"] == "intent" for one in records):
        finding.wrong.append("it got past the gate, and was stopped behind it only")
    out = [*told.said, log.encode("utf-8", "surrogateescape"), *_audit_lines(arena)]
    finding.wrong += [f"a raw control character in {text[:200]!r}" for text in out if RAW.search(text)]
    finding.wrong += [f"hidden character in {text[:200]!r}" for text in _texts(out) if HIDDEN.search(text)]
    hidden = [CANARY, HELD, SECRET, *told.hidden, *case.given.get("hides", ())]
    finding.wrong += [
        f"{secret!r} went out: {text[:300]!r}" for secret in hidden for text in out if secret.encode() in text
    ]
    for shown in case.given.get("shows", ()):
        if not any(shown in text for text in told.texts):
            finding.wrong.append(f"no {shown!r} in {told.texts!r:.2000}")
    if finding.effects:
        finding.wrong.append(f"effects: {finding.effects}")
    return finding


def _judge_codes(case: Case, told: Told, finding: Finding) -> None:
    each, wanted = case.given.get("each"), case.refused or ("ok",)
    good = told.codes == each if each else bool(told.codes) and all(code in wanted for code in told.codes)
    if not good:
        finding.accepted = bool(case.refused)
        finding.wrong.append(f"answered {told.codes}, not {each or list(wanted)}: {b' '.join(told.said)[:600]!r}")
    if any(code == "internal_error" or (isinstance(code, int) and 500 <= code < 600) for code in told.codes):
        finding.wrong.append(f"a fault of the gateway: {told.codes}")


def _judge_effects(case: Case, told: Told, arena: Arena, finding: Finding) -> None:
    """Nothing happened; where a case lets programs run, exactly these ran (`ran`, null for any); where it lets a plan
    look, an engine was asked with GET only (`looks`)."""
    seen = told.watch.effects if told.watch is not None else []
    if "ran" in case.given:
        seen = [one for one in seen if not one.startswith(("ran ", "os.kill"))]
        if case.given["ran"] is not None and not _same(case.given["ran"], arena.ran()):
            finding.effects.append(f"ran {arena.ran()}, not {case.given['ran']}")
    else:
        finding.effects += [f"ran {argv}" for argv in arena.ran()]
    if case.given.get("comes") or case.given.get("looks"):
        seen = [one for one in seen if not one.startswith("socket.")]
        looked = " got b'GET " if case.given.get("looks") else ""
        finding.effects += [one for one in arena.sinks.came if looked not in one]
    else:
        finding.effects += arena.sinks.came
    finding.effects += seen


def _judge_sizes(case: Case, told: Told, arena: Arena, finding: Finding) -> None:
    most, longest = case.given.get("most", 100_000), case.given.get("line", 20_000)
    size, lines = sum(map(len, told.said)), _audit_lines(arena)
    if size > most * case.given.get("times", 1):
        finding.wrong.append(f"the answer has {size} bytes, not {most} at most")
    if any(len(line) > longest for line in lines):
        finding.wrong.append(f"a line of {max(map(len, lines))} bytes in the audit log")


def _same(wanted: list[list[str]], ran: list[list[str]]) -> bool:
    pairs = list(zip(wanted, ran, strict=False))
    fits = all(len(one) == len(other) for one, other in pairs) and len(wanted) == len(ran)
    return fits and all(left in ("<any>", right) for pair in pairs for left, right in zip(*pair, strict=True))


def _records(arena: Arena) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _audit_lines(arena) if line.strip()]


def _times(record: dict[str, Any]) -> int:
    return int((record.get("arguments") or {}).get("times", 1)) if record["phase"] == "event" else 1


def _regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _audit_lines(arena: Arena) -> list[bytes]:
    return [
        line
        for path in sorted(arena.state.glob("audit*.jsonl"))
        if _regular(path)
        for line in path.read_bytes().splitlines()
    ]


def _texts(out: list[bytes]) -> Iterator[str]:
    """Every text in what went out, escapes of JSON undone: what a reader ends up with."""
    for data in out:
        for line in data.split(b"\n"):
            text = line.removeprefix(b"data:").strip()
            try:
                yield from _strings(json.loads(text))
            except ValueError:
                yield line.decode("utf-8", "replace").removesuffix("\r")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        if value.startswith("{"):  # the answer's text is JSON again
            with suppress(ValueError):
                yield from _strings(json.loads(value))
    elif isinstance(value, dict):
        for name, one in value.items():
            yield name
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
