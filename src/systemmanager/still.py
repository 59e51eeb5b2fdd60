"""Whether a call that waits is still its caller's to make."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from systemmanager.errors import CredentialExpired, Unauthenticated
from systemmanager.request import Principal

KNOWN_EVERY = 4.0
"""Seconds between two looks at whether the credential of a call that waits is still good."""

Still = Callable[[], Awaitable[Principal]]
"""Asks a call's credential once more. Raises `Unauthenticated`."""

T = TypeVar("T")


def taken_back(error: Unauthenticated) -> bool:
    """Whether somebody wants an end: the credential did not just expire, and who verifies it could be asked."""
    return not (error.retryable or isinstance(error, CredentialExpired))


async def while_known(still: Still | None, wait: Coroutine[Any, Any, T]) -> T:
    """What a wait comes to. It is given up when the credential of the call ends before: raises `Unauthenticated`.

    An outage of who verifies it ends nothing; whoever goes on after the wait asks once more."""
    waiting = asyncio.ensure_future(wait)
    try:
        while not (await asyncio.wait((waiting,), timeout=KNOWN_EVERY))[0]:
            try:
                if still is not None:
                    await still()
            except Unauthenticated as error:
                if not error.retryable:
                    raise
        return waiting.result()
    finally:
        waiting.cancel()
        await asyncio.wait((waiting,))
