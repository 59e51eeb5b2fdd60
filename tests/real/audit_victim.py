"""A process that is there to be killed: many mutating calls at once, each with an effect at a canary file.

Started once, so that everything is imported; for each line on standard input it forks a gateway, kills it at a random
point with SIGKILL and says so. A line: a folder, the number of the round, the microseconds until the kill, and from
when they count: `start`, or the first `effect`.
"""

import asyncio
import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from systemmanager import logs
from systemmanager.audit.chain import Limits
from systemmanager.audit.log import AuditLog
from systemmanager.audit.signing import Signer, new_key
from systemmanager.gateway import Gateway
from systemmanager.journal import Journal
from systemmanager.ports import Output
from systemmanager.request import Permit
from tests.support import operator, registry, target

AT_ONCE = 16
LIMITS = Limits(segment_bytes=40_000, checkpoint_records=25)


def log_in(folder: Path) -> AuditLog:
    signer = Signer.of((folder / "key").read_text())
    return AuditLog(folder / "audit.jsonl", signer=signer, witness=folder / "witness", limits=LIMITS)


class Canary:
    """A Shell whose restarts leave a line at the target."""

    def __init__(self, folder: Path, tell: int) -> None:
        self._file = os.open(folder / "effects", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._tell = tell

    async def run(self, *argv: str, **options: Any) -> Output:
        if "restart" in argv:
            os.write(self._file, argv[-1].removesuffix(".service").encode() + b"\n")
            os.write(self._tell, b".")
        return Output(argv, 0, f"LoadState=loaded\nActiveState=active\nSubState=running\nId={argv[-1]}\n", "")


async def victim(folder: Path, round: int, tell: int, most: int | None = None) -> None:
    shell = Canary(folder, tell)
    answered = os.open(folder / "answered", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    @asynccontextmanager
    async def open(permit: Permit, name: str) -> AsyncIterator[Any]:
        yield shell

    targets = [target(f"web-{n}", constraints={"sudo_policy": "full"}) for n in range(AT_ONCE)]
    gateway = Gateway(registry(*targets), open, Journal(log_in(folder)), root=True)
    gateway.journal.begin()
    numbers = itertools.count() if most is None else iter(range(most))

    async def worker(id: str) -> None:
        for number in numbers:
            unit = f"u{round}-{number}"
            asked = {"target": id, "action": "restart", "service_name": unit}
            reply = await gateway.call(operator(f"person-{number}"), "manage_service", asked)
            assert reply.ok, reply.as_dict()
            os.write(answered, unit.encode() + b"\n")
            await gateway.journal.tend()

    await asyncio.gather(*(worker(one.id) for one in targets))


def main() -> None:
    logs.configure("ERROR")
    with TemporaryDirectory() as folder:
        (Path(folder) / "key").write_text(new_key())
        asyncio.run(victim(Path(folder), 0, os.open(os.devnull, os.O_WRONLY), AT_ONCE))  # so that all is imported
    for line in sys.stdin:
        folder, round, delay, since = line.split()
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(victim(Path(folder), int(round), tell))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(tell)
        if since == "effect":
            os.read(told, 1)
        time.sleep(int(delay) / 1e6)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(told)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else f"ended by itself: {status}", flush=True)


if __name__ == "__main__":
    main()
