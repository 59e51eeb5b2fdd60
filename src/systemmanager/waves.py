"""Many targets in waves: a few first, the next ones only when those are well, and a stop that says what is left."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from systemmanager.errors import NotStarted
from systemmanager.shaping import TargetReply

MOST_PAUSE = 600
"""Seconds between two waves at most."""

NOT_ASKED = frozenset({"capability_missing", "scope_missing", "target_not_granted", "unsupported"})
"""Codes with which a target's health can't be asked for by this caller: then what the tool answered counts alone."""


_STEP = re.compile(r"[1-9][0-9]{0,4}|(?:[1-9][0-9]?|100)%")
_BATCH = "must be up to 20 numbers or percents of the targets, such as 1,10%,50%,100%"
MOST_STEPS = 20


def _batch(given: Any) -> str:
    """Steps by comma, a number, or a list of them."""
    steps = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
    found = ["".join(str(step).split()) for step in steps]
    if not 1 <= len(found) <= MOST_STEPS or not all(map(_STEP.fullmatch, found)):
        raise ValueError(_BATCH)
    return ",".join(found)


class Strategy(BaseModel):
    """How many targets are begun, wave by wave.

    `batch` are the targets begun by the end of each wave, of all that may run: numbers, or percent rounded up. What it
    does not reach is not started.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    batch: Annotated[str, BeforeValidator(_batch)] = "1,10%,50%,100%"
    max_failures: Annotated[int, Field(ge=0, le=10_000)] = 0
    pause: Annotated[float, Field(ge=0, le=MOST_PAUSE)] = 0.0
    health: bool = True


def sizes(batch: str, total: int) -> list[int]:
    """How many targets each wave has. Steps that begin no target more are left out."""
    done, found = 0, []
    for step in batch.split(","):
        number = int(step.rstrip("%"))
        upto = min(-(-total * number // 100) if step.endswith("%") else number, total)
        if upto > done:
            found.append(upto - done)
            done = upto
    return found


def unwell(data: dict[str, Any]) -> str | None:
    """What an answer itself says that is not as it should be."""
    if data.get("problem"):
        return "has a problem"
    bad = [f"{name} is {data[name]}" for name in ("active", "health") if data.get(name) in ("failed", "unhealthy")]
    return bad[0] if bad else None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What waves need of the gateway.

    `run` does one wave, its number given, and answers for each target; `well` asks targets how they are and answers by
    target the code of what is wrong; `begins` writes down that a wave begins, and answers why it may not.
    """

    run: Callable[[int, Sequence[str]], Awaitable[list[TargetReply]]]
    well: Callable[[Sequence[str]], Awaitable[dict[str, str]]]
    begins: Callable[[int, int, Sequence[str]], Awaitable[str | None]]


async def in_waves(strategy: Strategy, targets: Sequence[str], around: Surroundings) -> list[TargetReply]:
    """Run one wave after the other. A target counts as a failure when its call failed, or it is not well afterwards.

    Cancelled, it ends where it is: a wave that runs is cancelled, the next one never begins.
    """
    steps, replies, failures = sizes(strategy.batch, len(targets)), list[TargetReply](), dict[str, str]()
    stop: str | None = None
    for number, size in enumerate(steps, 1):
        if number > 1 and strategy.pause:
            await asyncio.sleep(strategy.pause)
        wave = targets[len(replies) : len(replies) + size]
        if stop := await around.begins(number, len(steps), wave):
            break
        found = await around.run(number, wave)
        replies += found
        failures |= await _failures(found, strategy, around)
        if len(failures) > strategy.max_failures and len(replies) < len(targets):
            named = ", ".join(f"{id} ({why})" for id, why in list(failures.items())[:5])
            more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
            stop = f"wave {number} of {len(steps)} was the last: {named}{more}"
            break
    stop = stop or f"batch {strategy.batch} ends at {len(replies)} of {len(targets)} targets"
    return [*replies, *(_left(id, stop) for id in targets[len(replies) :])]


async def _failures(found: Sequence[TargetReply], strategy: Strategy, around: Surroundings) -> dict[str, str]:
    failed = {one.target: str(one.error["code"]) for one in found if one.error is not None}
    if not strategy.health:
        return failed
    ill = {one.target: why for one in found if one.data is not None and (why := unwell(one.data))}
    if left := [one.target for one in found if one.target not in {*failed, *ill}]:
        ill |= await around.well(left)
    for one in found:
        if one.target in ill and one.data is not None:
            one.data = {**one.data, "unhealthy": ill[one.target]}
    return failed | ill


def _left(id: str, why: str) -> TargetReply:
    error = NotStarted(
        f"not started: {why}", hint="Look at what failed; then the same call with the targets that are left."
    )
    return TargetReply(id, error=error.as_dict())
