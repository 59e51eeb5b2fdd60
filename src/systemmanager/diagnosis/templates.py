"""Template mining: messages that differ in their values alone are one template.

A small Drain (He et al., "Drain: An Online Log Parsing Approach with Fixed Depth Tree", ICWS 2017): a tree of fixed
depth by number of words and first words leads to few groups, the most similar one takes the message. drain3 is not
used: its last release, of 2022, pins versions of two libraries that are long outdated.
"""

import re
from dataclasses import dataclass, field
from typing import Any

ANY = "<*>"
SIMILAR = 0.6
MOST_WORDS = 60
MOST_GROUPS = 1000
"""Templates that are told apart; what comes after that many is one."""

_VALUES = (
    re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"),
    re.compile(r"\b(?:0x)?[0-9a-fA-F]{12,64}\b|\b0x[0-9a-fA-F]+\b"),
    re.compile(r"\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?"),
    re.compile(r"\"[^\"]{0,300}\"|'[^']{0,300}'"),
    re.compile(r"(?<![\w<])[+-]?\d+(?:[.,:]\d+)*(?=%|[a-zA-Zµ]{0,3}\b)[a-zA-Zµ%]{0,3}"),
)


def masked(message: str) -> str:
    """The message with ids, addresses, quoted texts and numbers as `<*>`."""
    for value in _VALUES:
        message = value.sub(ANY, message)
    return message


@dataclass(slots=True, eq=False)
class Template:
    words: list[str]
    count: int = 0

    @property
    def text(self) -> str:
        return " ".join(self.words)


@dataclass(slots=True)
class Templates:
    """The templates seen so far."""

    _tree: dict[Any, list[Template]] = field(default_factory=dict)
    _exact: dict[str, Template] = field(default_factory=dict)
    _other: Template = field(default_factory=lambda: Template([ANY]))
    groups: int = 0

    def add(self, message: str) -> Template:
        """The template of one message, counted."""
        plain = masked(message)
        found = self._exact.get(plain)
        if found is None:
            found = self._place(plain.split()[:MOST_WORDS])
            if len(self._exact) < 10 * MOST_GROUPS:
                self._exact[plain] = found
        found.count += 1
        return found

    def _place(self, words: list[str]) -> Template:
        leaf = self._tree.setdefault((len(words), *(_branch(word) for word in words[:2])), [])
        best = max(leaf, key=lambda one: _likeness(one.words, words), default=None)
        if best is not None and _likeness(best.words, words) >= SIMILAR:
            best.words = [old if old == new else ANY for old, new in zip(best.words, words, strict=True)]
            return best
        if self.groups >= MOST_GROUPS:
            return self._other
        self.groups += 1
        leaf.append(Template(words))
        return leaf[-1]


def _branch(word: str) -> str:
    return ANY if any(char.isdigit() for char in word) else word


def _likeness(template: list[str], words: list[str]) -> float:
    """The share of equal words; a place that takes anything counts for neither."""
    if not words:
        return 1.0
    same = sum(old == new for old, new in zip(template, words, strict=True) if old != ANY)
    fixed = sum(old != ANY for old in template)
    return same / fixed if fixed else 1.0
