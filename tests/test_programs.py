"""Children of the gateway's own: each ends whole, however often its caller is cancelled."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from systemmanager.executors.bounded import Collected
from systemmanager.executors.programs import run_program
from tests.support import run


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def runs(mark: Path) -> bool:
    return Path(f"/proc/{mark.read_text().strip()}/status").exists()


def test_a_second_cancellation_leaves_neither_program_nor_pipe_behind(tmp_path: Path) -> None:
    """One that does not listen to SIGTERM is still waited for when the second one comes."""
    mark = tmp_path / "pid"
    script = f"trap '' TERM; echo $$ >{mark}.new; mv {mark}.new {mark}; while :; do sleep 1; done"

    async def work() -> None:
        pipes = descriptors()
        task = asyncio.ensure_future(run_program(["sh", "-c", script], Collected(1000), {"PATH": os.environ["PATH"]}))
        while not mark.exists():
            await asyncio.sleep(0.01)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.1)
        with suppress(asyncio.CancelledError):
            await task
        deadline = asyncio.get_running_loop().time() + 5
        while runs(mark) or descriptors() > pipes:
            assert asyncio.get_running_loop().time() < deadline, "it runs on, or its pipes are open"
            await asyncio.sleep(0.01)

    run(work())
