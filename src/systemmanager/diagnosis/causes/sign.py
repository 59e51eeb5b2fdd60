"""How a cause is declared: what it is called, which words and facts are signs of it, and what helps."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from systemmanager.diagnosis.facts import Facts

Told = tuple[float, str]
"""How sure a fact makes of a cause (0..1), and which fact it was."""


@dataclass(frozen=True, slots=True)
class Sign:
    """Words of a log line or a trace, and how sure they make when an error says them."""

    words: re.Pattern[str]
    weight: float
    least: int = 1
    """Lines that it takes: one failed login is no attack."""


@dataclass(frozen=True, slots=True)
class Cause:
    """`sentence` is the gateway's own words; what a sign's groups `what` and `where` catch is told beside it."""

    code: str
    sentence: str
    advice: tuple[str, ...]
    signs: tuple[Sign, ...] = ()
    facts: Callable[[Facts], Told | None] | None = None
    topics: tuple[str, ...] = ()
    """Words of a question that ask for this cause."""
    deed: bool = False
    """Somebody did it: neither how its lines are graded nor what came after them makes it less so."""


def sign(weight: float, *words: str, least: int = 1) -> Sign:
    """A sign of any of these words, in whatever case."""
    return Sign(re.compile("|".join(words), re.IGNORECASE), weight, least)


def exact(weight: float, *words: str) -> Sign:
    """A sign whose case matters."""
    return Sign(re.compile("|".join(words)), weight)
