"""How targets are reached. The only home of asyncssh, docker, httpx, psutil and subprocess.

`Executors.open` gives the port that a Permit is for. Connections are kept between calls; each kind of target is
imported when it is first used.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from systemmanager.errors import Unsupported
from systemmanager.executors.own_files import OwnFiles
from systemmanager.request import Permit
from systemmanager.target import Target


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What executors need of the gateway's own machine.

    `runtime` is a private folder for sockets, `state` one that stays (without it there are no stacks); `credentials`
    are folders of secret files; `known_hosts` are the files that are read when a target names none;
    `own_files` are the gateway's, which no file tool may read.
    """

    runtime: Path
    known_hosts: tuple[Path, ...] = ()
    own_files: OwnFiles = field(default_factory=OwnFiles)
    state: Path | None = None
    credentials: tuple[Path, ...] = ()


class Executor(Protocol):
    """One kind of target. Made by `create(surroundings)` of its module, entered once, open until the gateway stops."""

    async def open(self, permit: Permit, port: str, stack: AsyncExitStack) -> Any:
        """The port for this permit; what must be closed after the operation goes on `stack`."""
        ...

    async def retire(self, targets: Iterable[Target]) -> None:
        """Close what is kept for targets that a reload changed or removed, when their last call has ended."""
        ...

    async def aclose(self) -> None: ...


class Executors:
    """All kinds, as one opener. An async context manager: leaving it closes every kept connection."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._by_kind: dict[str, Executor] = {}

    async def __aenter__(self) -> "Executors":
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(executor.aclose() for executor in self._by_kind.values()), return_exceptions=True)
        self._by_kind.clear()

    def _executor(self, kind: str) -> Executor:
        if kind not in self._by_kind:
            module = import_module(f"systemmanager.executors.{kind}")
            self._by_kind[kind] = module.create(self._surroundings)
        return self._by_kind[kind]

    @asynccontextmanager
    async def open(self, permit: Permit, port: str) -> AsyncIterator[Any]:
        """The port that the permit's operation asked for. Raises `TargetError`."""
        async with AsyncExitStack() as stack:
            yield await self._executor(permit.target.executor).open(permit, port, stack)

    async def retire(self, targets: Iterable[Target]) -> None:
        kinds: dict[str, list[Target]] = {}
        for target in targets:
            kinds.setdefault(target.executor, []).append(target)
        for kind, changed in kinds.items():
            if kind in self._by_kind:
                await self._by_kind[kind].retire(changed)


def unsupported(permit: Permit, port: str) -> Unsupported:
    return Unsupported(f"{permit.target.id!r} is of kind {permit.target.executor}, which has no {port}")
