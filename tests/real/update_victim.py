"""An update of a container by a process that kills itself at one step, and what the next process makes of it."""

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from systemmanager.executors.docker import EngineDocker, engine_at
from systemmanager.executors.docker_client import forget
from systemmanager.jobs.job import Job
from systemmanager.jobs.store import JobStore
from systemmanager.operation import Access, Risk
from systemmanager.operations import container_update
from systemmanager.operations.container_update import ContainerUpdate, update_docker_container
from systemmanager.request import Permit
from tests.support import target

JOB, TARGET = "0" * 16, "engine"
CHANGES = ("act", "rename", "create", "connect", "remove")


class Deadly:
    """A Docker port that kills the whole process before or after change number `at`; at -1 at no change."""

    def __init__(self, docker: EngineDocker, at: int, after: bool) -> None:
        self._docker, self._at, self._after = docker, at, after
        self.following = docker.following
        self.seen = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._docker, name)
        return self._counted(method) if name in CHANGES else method

    def _counted(self, method: Any) -> Any:
        async def change(*arguments: Any, **options: Any) -> Any:
            self.seen += 1
            if self.seen == self._at and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = await method(*arguments, **options)
            if self.seen == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return change


async def update(socket: str, name: str, folder: Path, at: int = -1, after: bool = False) -> ContainerUpdate:
    """One process's part of the job. It does what a runner does."""
    container_update.SETTLE = 0.3
    where = target(TARGET, "docker", connection={"socket_path": socket})
    permit = Permit("test", where, (), Access((), (), Risk.CRITICAL), 120)
    job = Job(JobStore(folder / "jobs.sqlite"), JOB, "update_docker_container", "test", (TARGET,))
    async with AsyncExitStack() as stack:
        stack.callback(forget)
        docker = await engine_at(f"unix://{socket}", permit, stack)
        docker.following = await job.following(TARGET)
        return await update_docker_container(Deadly(docker, at, after), name)


if __name__ == "__main__":
    asyncio.run(update(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "after"))
