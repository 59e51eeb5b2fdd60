"""The cases as data: `cases/<group>.yaml` holds a list of them.

    - id: unit-with-a-semicolon          unique over all groups
      how: call                          which attacker carries it out (`attackers.ATTACKERS`); default call
      refused: invalid_arguments         the code, the HTTP status, or a list of those that would do
      records: 1                         decisions on record; default 1
      at_the_gate: true                  a rule refuses it, not only what stands behind the gate
    ran: [[ping, -n, <any>]]           these programs ran, no other; shows, hides: texts in the answer, or nowhere
    ...                                the input, as the attacker reads it

A text may hold `<canary>` (a folder where nothing may appear), `<root>` (an allowed folder), `<sink>` (the port of a
listener that counts connections), `<secret>` ... (`arena.Arena.names`). `{$repeat: [x, 1000]}` is a long text or list,
`{$nest: [x, 100]}` a deep list, `{$text: 1e9}` a value of plain YAML as text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "cases"

GROUPS = {
    "auth": "auth and tokens",
    "rights": "scope and capability bypass",
    "shell": "shell",
    "options": "argument injection",
    "stacks": "git and Compose",
    "paths": "paths",
    "egress": "SSRF",
    "formats": "YAML and JSON",
    "output": "output bombs",
    "text": "text injection",
    "audit": "audit forging",
    "approvals": "approvals",
    "secrets": "secrets",
    "exhaustion": "exhaustion",
    "reload": "reload races",
}
"""File name -> the class as the table names it."""


@dataclass(frozen=True, slots=True)
class Case:
    id: str
    group: str
    how: str
    refused: tuple[str | int, ...]
    records: int
    given: Mapping[str, Any]

    def __str__(self) -> str:
        return self.id


_OWN = ("id", "how", "refused", "records")


@cache
def cases(group: str) -> tuple[Case, ...]:
    """Every case of one group, in its file's order."""
    found = []
    for row in yaml.load((FOLDER / f"{group}.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
        codes = row.get("refused", [])
        refused = tuple(codes) if isinstance(codes, list) else (codes,)
        given = {name: value for name, value in row.items() if name not in _OWN}
        found.append(Case(row["id"], group, row.get("how", "call"), refused, row.get("records", 1), given))
    return tuple(found)


def filled(value: Any, names: Mapping[str, str]) -> Any:
    """The input with its placeholders replaced."""
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace(f"<{name}>", text)
        return value
    if isinstance(value, list):
        return [filled(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    if "$repeat" in value:
        what, times = value["$repeat"]
        return filled(what, names) * times
    if "$nest" in value:
        what, depth = value["$nest"]
        for _ in range(depth):
            what = [what]
        return what
    if "$join" in value:
        return "".join(filled(value["$join"], names))
    return {filled(name, names): filled(one, names) for name, one in value.items()}
