"""Steps that must not be left half done, whatever happens to the call or to the engine meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import anyio

from systemmanager.errors import ConnectionLost, EngineUnavailable

WAY_BACK = 120.0
"""Seconds that undoing may take; the engine may be restarting meanwhile."""

T = TypeVar("T")


async def insist(step: Callable[[], Awaitable[None]]) -> None:
    """Do a step, again and again while the engine is away."""

    async def until_done() -> None:
        while True:
            with suppress(EngineUnavailable, ConnectionLost):
                await step()
                return
            await anyio.sleep(0.5)

    await asyncio.wait_for(until_done(), WAY_BACK)


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Wait for what must not be cut off, however often the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    cancelled = False
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                cancelled = True
    if cancelled and not task.exception():
        raise asyncio.CancelledError
    return task.result()
