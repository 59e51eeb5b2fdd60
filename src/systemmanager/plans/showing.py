"""A plan in lines, as a person reads a diff: `+` what is new, `-` what goes, `~` what becomes another."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

COLOURS = {"+": "green", "-": "red", "~": "yellow", "!": "red"}
"""By a line's first character; every other line is plain."""


def lines_of(plan: Mapping[str, Any]) -> Iterator[str]:
    """What one target's plan says."""
    if problem := plan.get("problem"):
        yield f"! can't be planned: {problem}"
        return
    changes = plan.get("changes") or []
    for change in changes:
        what = f"{change['what']}{', ' + change['field'] if change.get('field') else ''}"
        before, after = change.get("before"), change.get("after")
        sign = "~" if before and after else "-" if before else "+"
        yield f"{sign} {what}: {' -> '.join(filter(None, (before, after)))}"
    if more := plan.get("more_changes"):
        yield f"~ and {more} more"
    if not changes:
        yield "  nothing would change"
    yield from (plan.get("diff") or "").splitlines()
    yield from (f"  note: {note}" for note in plan.get("notes") or [])
    if inverse := plan.get("inverse"):
        given = " ".join(
            f"{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in inverse["arguments"].items()
        )
        yield f"  back: {inverse['tool']} {given}"
    elif changes and plan.get("no_inverse"):
        yield f"  no way back: {plan['no_inverse']}"


def lines_of_all(plan: Mapping[str, Any]) -> Iterator[str]:
    """What a whole call's plan says, as an approval request holds it: the same of several targets once."""
    groups = plan.get("groups") or []
    if waves := plan.get("strategy"):
        pause = f", {waves['pause']:g} s between them" if waves["pause"] else ""
        failures = (
            f"up to {waves['max_failures']} failures do not stop it"
            if waves["max_failures"]
            else "the first failure stops it"
        )
        yield f"in waves: {waves['batch']}{pause}, {failures}{'' if waves['health'] else ', health is not asked'}"
    for group in groups:
        if len(groups) > 1:
            yield f"{', '.join(group['targets'])}:"
        yield from lines_of(group)
    yield f"  plan {plan.get('plan_id')}"
