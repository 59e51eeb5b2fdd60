"""A model may reword and rank what was found in logs. Its answer counts for the order of causes and as others' text; it
comes too late, or is of no use, and the answer is what it would have been without.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import structlog

from systemmanager.diagnosis.advice import NoAdvice, codes, question, ranked, read
from systemmanager.fencing import fence, new_nonce
from systemmanager.journal import Call, Journal
from systemmanager.shaping import TargetReply

WITHIN = 20.0
"""Seconds for all answers of a model to one call."""

MOST_TARGETS = 3
"""Answers of one call that a model is asked about."""


class Model(Protocol):
    """A model that can be asked."""

    @property
    def name(self) -> str: ...

    def there(self) -> bool:
        """Whether it can be asked now."""
        ...

    async def ask(self, text: str) -> str | None:
        """Its answer to a question; None when there will be none now. Raises `NoAdvice`."""
        ...


log = structlog.get_logger("systemmanager")


def wanted(call: Call) -> bool:
    """Whether the caller wants a model's words, and the operation has something to say to it."""
    return bool(call.arguments.get("use_ai")) and not call.shared.dry_run


async def advise(call: Call, results: Sequence[TargetReply], models: Sequence[Model], journal: Journal) -> None:
    """Let the first model that is there say something about each answer. Changes `results`; never raises."""
    model = next((one for one in models if one.there()), None) if wanted(call) else None
    if model is None:
        return
    asked = [(result, text) for result in results if result.data and (text := _question(call, result.data))]
    try:
        async with asyncio.timeout(WITHIN):
            for result, text in asked[:MOST_TARGETS]:
                await _one(call, result, text, model, journal)
    except TimeoutError:
        log.warning("a model did not answer in time", model=model.name)  # the answer says so already
    for result, _ in asked[MOST_TARGETS:]:
        _say(result, f"not asked: {MOST_TARGETS} targets at most")


def _question(call: Call, data: dict[str, Any]) -> str | None:
    context = call.arguments.get("context")
    return question(data, call.redactor.text(context) if context else None)


async def _one(call: Call, result: TargetReply, text: str, model: Model, journal: Journal) -> None:
    """One answer put in order and in words. That a model is asked is on record before it is."""
    assert result.data is not None
    _say(result, f"{model.name} did not answer; this is the engine's own answer")
    details = {"call_id": call.id, "tool": call.operation.name, "target": result.target, "model": model.name}
    await journal.event("model asked", details, call.principal.subject)
    try:
        said = await model.ask(text)
        if said is None:
            return
        found = codes(result.data)
        advice = read(said, found)
    except NoAdvice as error:
        log.warning("a model's answer does not count", model=model.name, why=str(error))
        _say(result, f"{model.name} was of no use: {error}; this is the engine's own answer")
        return
    changed = ranked(result.data, advice)
    changed["explanation"] = fence(call.redactor.text(advice.explanation), True, new_nonce())
    order = "same order" if codes(changed)[0] == found[0] else f"the engine put {found[0]} first"
    changed["ai"] = f"explained and ranked by {model.name}; {order}"
    result.data = changed


def _say(result: TargetReply, what: str) -> None:
    if result.data is not None:
        result.data = {**result.data, "ai": what}
