"""How far a call is, told to whoever asked."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

Progress = Callable[[float, int, str], Awaitable[None]]

PATIENCE = 2.0
"""Seconds that a client may take to receive one progress message before it gets no more of them."""

log = structlog.get_logger("systemmanager")


@dataclass(slots=True)
class Told:
    """One who does not listen, or fails to, is not told again: that fails no call."""

    progress: Progress | None
    total: int = 1
    done: int = 0
    also: Callable[[str], None] | None = None

    async def one_more(self, target: str) -> None:
        """Another target has answered."""
        self.done += 1
        await self.say(self.done, f"{target} answered")

    async def say(self, done: float, message: str) -> None:
        if self.also is not None:
            self.also(message)
        if self.progress is None:
            return
        (failed,) = await asyncio.gather(self._say(self.progress, done, message), return_exceptions=True)
        if failed is not None:
            self.progress = None
            log.warning("progress could not be told", error=type(failed).__name__)

    async def _say(self, progress: Progress, done: float, message: str) -> None:
        async with asyncio.timeout(PATIENCE):
            await progress(done, self.total, message)
