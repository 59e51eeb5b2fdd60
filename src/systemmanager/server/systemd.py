"""What systemd is told: ready, reloading, a line of status, and that the loop still turns (sd_notify(3))."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


def notify(*lines: str) -> bool:
    """Send one message to $NOTIFY_SOCKET; False where there is none or nobody takes it. Never blocks."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    place = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto("\n".join(lines).encode(), place)
        return True
    return False


def ready(said: str) -> None:
    """The gateway answers, or answers again."""
    notify("READY=1", f"STATUS={line(said)}")


def reloading() -> None:
    """A reload has begun; systemd wants to know when, on the monotonic clock, in microseconds."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", "STATUS=reloading")


def line(text: str) -> str:
    """One line of printable text, 300 characters at most."""
    return "".join(char if char.isprintable() else " " for char in text)[:300]


def patience() -> float | None:
    """Seconds between two signs of life that systemd wants of this process; None: it does not watch."""
    asked, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not asked.isdigit() or int(asked) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(asked) / 2_000_000


@asynccontextmanager
async def watched() -> AsyncIterator[None]:
    """Give signs of life from this loop, as often as systemd wants them, and say when it stops."""
    every = patience()
    beating = asyncio.create_task(_beat(every)) if every is not None else None
    try:
        yield
    finally:
        notify("STOPPING=1", "STATUS=stopping")
        if beating is not None:
            beating.cancel()
            await asyncio.wait([beating])


async def _beat(every: float) -> None:
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(every)
