"""Ports of the real SSH executor, for tests that need no gateway around them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from systemmanager.executors import Surroundings
from systemmanager.executors.ssh import SshExecutor, create
from systemmanager.operation import Risk, demand
from systemmanager.request import Permit
from systemmanager.target import Target
from tests.support import run


class Opened:
    """An executor; `await opened(target, "Shell")` is that port, open until the end."""

    def __init__(self, executor: SshExecutor, stack: AsyncExitStack) -> None:
        self.executor = executor
        self._stack = stack

    async def __call__(self, target: Target, port: str, via: Sequence[Target] = ()) -> Any:
        permit = Permit("call", target, tuple(via), demand("system:read", "system:read", Risk.LOW), 30.0)
        return await self.executor.open(permit, port, self._stack)


@asynccontextmanager
async def ssh_executor(folder: Path, *known_hosts: Path) -> AsyncIterator[Opened]:
    executor = create(Surroundings(folder / "run", known_hosts))
    try:
        async with AsyncExitStack() as stack:
            yield Opened(executor, stack)
    finally:
        await executor.aclose()


def probed(tmp_path: Path, target: Target, *known_hosts: Path, via: tuple[Target, ...] = ()) -> dict[str, str]:
    """What the probe of a fresh executor answers."""

    async def work() -> dict[str, str]:
        async with ssh_executor(tmp_path, *known_hosts) as opened:
            return dict(await (await opened(target, "Probe", via)).probe())

    return run(work())
