"""What many targets answer alike is said once; each other answer is what differs from it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from systemmanager.shaping import TargetReply

FEWEST = 3
"""Answers from which on they are looked at together."""

NOTE = "common holds on every target without error, but for what differs or lacks there"

HERE = "<target>"
"""Stands for each target's own id in an error that several share."""


@dataclass(slots=True)
class Group:
    """Targets that answer alike: `data` is what of it is not common to most, `lacks` what of the common is not there.

    `error` instead of both for targets that failed alike.
    """

    targets: list[str]
    data: dict[str, Any] = field(default_factory=dict)
    lacks: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None
    untrusted: bool = False

    def as_dict(self) -> dict[str, Any]:
        body: dict[str, Any] = {"target": self.targets[0]} if len(self.targets) == 1 else {"targets": self.targets}
        if self.untrusted:
            body["untrusted"] = True
        if self.error is not None:
            return {**body, "error": self.error}
        return body | ({"differs": self.data} if self.data else {}) | ({"lacks": self.lacks} if self.lacks else {})


@dataclass(frozen=True, slots=True)
class Grouped:
    """`common` is what more than half of the targets that did it answer alike, field by field."""

    common: Mapping[str, Any]
    groups: Sequence[Group]


def grouped(results: Sequence["TargetReply"]) -> Grouped | None:
    """The answers in groups, the largest first; None where nothing is gained by it."""
    good = [one.data for one in results if one.error is None and one.data is not None]
    if len(results) < FEWEST:
        return None
    common = _common(good)
    failed = Counter(_text(one.error) for one in results)
    groups: dict[str, Group] = {}
    for one in results:
        made = _group(one, common, alone=failed[_text(one.error)] == 1)
        shared = groups.setdefault(_key(made), made)
        if shared is not made:
            shared.targets += made.targets
    found = sorted(groups.values(), key=lambda group: -len(group.targets))
    for group in found:
        if len(group.targets) == 1 and group.error is not None:
            group.error = next(one.error for one in results if one.target == group.targets[0])
    return Grouped(common, found) if common or len(found) < len(results) else None


def _common(good: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each field's value that more than half of the answers have, in the order in which fields first appear."""
    if len(good) < FEWEST:
        return {}
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for data in good for name in data):
        values = {_text(data[name]): data[name] for data in good if name in data}
        counts = Counter(_text(data[name]) for data in good if name in data)
        ((text, times),) = counts.most_common(1)
        if 2 * times > len(good):
            found[name] = values[text]
    return found


def _group(one: "TargetReply", common: Mapping[str, Any], *, alone: bool) -> Group:
    """`alone`: no other target failed in these very words."""
    if one.error is not None:
        text = _text(one.error)
        shared = text.replace(one.target, HERE) if alone and len(one.target) >= FEWEST else text
        return Group([one.target], error=json.loads(shared), untrusted=one.untrusted)
    data = one.data or {}
    differs = {name: value for name, value in data.items() if name not in common or common[name] != value}
    return Group([one.target], differs, [name for name in common if name not in data], untrusted=one.untrusted)


def _key(group: Group) -> str:
    return _text([group.data, group.lacks, group.error, group.untrusted])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
