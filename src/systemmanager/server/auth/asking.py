"""Asking whoever verifies credentials: over one kept HTTP client, bounded in time and size, once for many."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

import httpx

from systemmanager.server.auth.identity import Unavailable
from systemmanager.server.auth.plain import plain_object

WITHIN = 5.0
"""Seconds in which the whole answer must be there."""

MOST = 256 * 1024
"""Bytes of one answer."""

T = TypeVar("T")


class Status(Unavailable):
    """The answer has another status than 200."""

    def __init__(self, where: str, status: int) -> None:
        super().__init__(f"{where} answered status {status}")
        self.status = status


async def ask(
    client: httpx.AsyncClient, method: str, url: str, within: float = WITHIN, **fields: Any
) -> dict[str, Any]:
    """The JSON object that `url` answers. No redirect is followed, nothing is unpacked.

    Raises `Unavailable` for everything else: whoever answers garbage has verified nothing.
    """
    try:
        async with asyncio.timeout(within):
            async with client.stream(method, url, **fields) as response:
                if response.status_code != 200:
                    raise Status(url, response.status_code)
                if "content-encoding" in response.headers:
                    raise Unavailable(f"{url} answered something packed that nobody asked for")
                data = b""
                async for chunk in response.aiter_raw(16 * 1024):
                    data += chunk
                    if len(data) > MOST:
                        raise Unavailable(f"{url} answered more than {MOST} bytes")
        return plain_object(data)
    except TimeoutError:
        raise Unavailable(f"{url} did not answer within {within:g} s") from None
    except httpx.HTTPError as error:
        raise Unavailable(f"{url} can't be asked: {str(error) or type(error).__name__}") from None
    except ValueError as error:
        raise Unavailable(f"{url} answered no JSON object: {str(error)[:100]}") from None


class Together(Generic[T]):
    """One question at a time per key: who asks the same while it is under way gets the same answer."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Task[T]] = {}

    async def once(self, key: Hashable, question: Callable[[], Awaitable[T]]) -> T:
        """The answer to `question`. One who stops waiting stops nobody else."""
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(_awaited(question))
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def _ended(self, key: Hashable, done: "asyncio.Task[T]") -> None:
        del self._under_way[key]
        if not done.cancelled():
            done.exception()  # when all who waited went away, nobody else looks at it

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _awaited(question: Callable[[], Awaitable[T]]) -> T:
    return await question()
