"""Whether somebody who tried logins in vain got in at last: lines that say little each, and much together."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from systemmanager.diagnosis.traces import Event

LEAST = 5
"""Logins that failed from one address: fewer are somebody who has forgotten a password."""

MOST_ADDRESSES = 10_000

# From the beginning on, and the last address of several: a name that somebody logs in with may hold such words, too.
_SAYS = r"(?:\S{1,40}: )?(?:message repeated (?P<times>\d{1,5}) times: \[ ?)?"
_FROM = r" from (?P<from>[0-9A-Fa-f.:]{3,45}) port \d"
_FAILED = re.compile(rf"{_SAYS}(?:failed \S{{1,40}} for|invalid user) .{{0,300}}{_FROM}", re.IGNORECASE)
_ACCEPTED = re.compile(rf"{_SAYS}accepted (?P<how>\S{{1,40}}) for (?P<who>\S{{1,80}}){_FROM}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entered:
    """`who` is an account and an address; `lines` are the login that worked and those before it that did not."""

    who: str
    confidence: float
    lines: tuple[int, ...]


def break_in(events: Sequence[Event]) -> Entered | None:
    """The first login from an address that had failed often before. Without a password it is held less likely: such
    an address may be that of many, some of them with a key."""
    failed: dict[str, list[int]] = {}
    counts: Counter[str] = Counter()
    found: Entered | None = None
    for event in events:
        text = event.message[:500]
        if (tried := _FAILED.match(text)) is not None:
            if len(failed) < MOST_ADDRESSES:
                failed.setdefault(tried["from"], []).append(event.first.number)
                counts[tried["from"]] += int(tried["times"] or 1)
        elif (entered := _ACCEPTED.match(text)) is not None and counts[entered["from"]] >= LEAST:
            before = failed[entered["from"]]
            confidence = 0.6 if entered["how"] in ("publickey", "hostbased", "gssapi-with-mic") else 0.97
            if found is None or confidence > found.confidence:
                who = f"{entered['who']} from {entered['from']}"
                found = Entered(who, confidence, (*before[:5], *before[-5:], event.first.number))
    return found
