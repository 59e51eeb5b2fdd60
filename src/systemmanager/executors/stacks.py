"""Compose stacks of one target: git and Compose run here, on the gateway, and the target's engine does the work."""

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from systemmanager.errors import Denied, EngineRefused, GatewayError, NotConfigured, NotFound
from systemmanager.executors import Surroundings
from systemmanager.executors.checkout_files import carried
from systemmanager.executors.compose import Compose, Engine, compose_missing, find
from systemmanager.executors.docker import EngineDocker
from systemmanager.executors.docker_client import Client, Tls, client_for
from systemmanager.executors.egress import Egress
from systemmanager.executors.git import Git, secrets_for, workplace
from systemmanager.executors.local_network import is_own
from systemmanager.executors.local_network import resolved as resolve_name
from systemmanager.executors.stack_records import StackRecords
from systemmanager.ports import Json, Tail
from systemmanager.redaction import MASK, Redactor
from systemmanager.request import Permit
from systemmanager.stacks import Document, Judged, Kept, Repository, Source, StackJudge

MOST_FILES = 30
"""Compose files of one stack, included and extended ones too."""

MOST_ENV_FILE = 256 * 1024
ORPHAN_WITHIN, LOOK_EVERY = 300.0, 0.2
"""Seconds that what a killed gateway had begun may take to end, and between two looks at it."""


class EngineStacks(EngineDocker):
    """The Stacks port of one call. `folder` is where its checkouts are made; they go when the call ends."""

    def __init__(
        self, client: Client, permit: Permit, engine: Engine, surroundings: Surroundings, stack: AsyncExitStack
    ) -> None:
        super().__init__(client, permit)
        if surroundings.state is None or permit.judge is None:
            raise NotConfigured("this gateway has no state folder, which stacks need")
        self._permit, self._judge, self._engine, self._stack = permit, permit.judge, engine, stack
        self._surroundings, self._folder = surroundings, surroundings.state / "stacks" / permit.target.id
        self._records = StackRecords(surroundings.state)
        self._redactor = Redactor()
        self._places: dict[str, Path] = {}
        self._holds: tuple[int, ...] = ()

    # --- from git to what may run -------------------------------------------------------------------------------------

    async def resolve(
        self, stack: str, repo: str, branch: str, file: str, given: Mapping[str, str], commit: str | None = None
    ) -> Judged:
        if await asyncio.to_thread(find) is None:
            raise compose_missing()
        repository = self._judge.repository(repo)
        self._hide(given)
        work = self._stack.enter_context(workplace(self._folder / stack))
        git = Git(work, repository, await self._addresses(repository), self._secrets(repository))
        found = await git.fetch(commit or f"refs/heads/{branch}")
        checkout = work / "files"
        await git.checkout(found, checkout)
        source = Source(stack, repository.url, branch, file)
        compose = self._compose(stack, (checkout / file).parent)
        with self._cleaned():
            return await judged(self._judge, compose, source, found, checkout, given, self._hide)

    async def _addresses(self, repository: Repository) -> tuple[str, ...]:
        """Where the repository's host is, seen from the gateway. Raises `Denied`."""
        way_out = Egress(self._permit, resolve_name, own=is_own, hosts=self._judge.hosts)
        try:
            return await way_out.addresses(repository.host)
        except Denied as error:
            known = f"constraints.hosts of {self._permit.target.id!r}"
            message, hint = (
                text.replace(known, "stacks.hosts of policy.yaml") for text in (error.message, error.hint or "")
            )
            raise Denied(message, code="repo_not_allowed", hint=hint) from error

    def _secrets(self, repository: Repository) -> Any:
        assert self._surroundings.state is not None
        folders = (*self._surroundings.credentials, self._surroundings.state / "git")
        secrets = secrets_for(repository.host, folders, self._surroundings.known_hosts)
        self._redactor = Redactor([*self._known, *([secrets.token] if secrets.token else [])])
        return secrets

    # --- what runs ----------------------------------------------------------------------------------------------------

    def adjusted(
        self, judged: Judged, commits: Mapping[str, str] | None = None, images: Mapping[str, str] | None = None
    ) -> Judged:
        return self._judge.adjusted(judged, commits or {}, images or {})

    async def again(self, kept: Kept) -> Judged:
        self._hide(kept.environment)
        services = {
            name: {key: value for key, value in one.items() if key != "build"}  # its image was built then
            for name, one in kept.config["services"].items()
        }
        return self._judge.resolved(
            kept.source,
            kept.commit,
            {**kept.config, "services": services},
            checkout=str(self._folder),
            environment=kept.environment,
        )

    @asynccontextmanager
    async def alone(self, stack: str) -> AsyncIterator[None]:
        """Two locks: one is the gateway's, the other one its Compose holds too. Where only that is taken, a gateway was
        killed and what it had begun runs on: that comes to its end first."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._file(f"{stack}.lock") as ours, self._file(f"{stack}.running") as running:
            if not _locked(ours):
                raise EngineRefused(f"stack {stack!r} is being changed already", retryable=True)
            for _ in range(int(ORPHAN_WITHIN / LOOK_EVERY)):
                if _locked(running):
                    break
                await asyncio.sleep(LOOK_EVERY)
            else:
                raise EngineRefused(
                    f"docker compose of a gateway that was killed still changes stack {stack!r}", retryable=True
                )
            self._holds = (running,)
            try:
                yield
            finally:
                self._holds = ()

    @contextmanager
    def _file(self, name: str) -> Iterator[int]:
        descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    async def build(self, judged: Judged) -> None:
        self._check_may_change()
        with self._cleaned():
            await self._compose(judged.source.stack).build(judged)

    async def up(self, judged: Judged) -> None:
        self._check_may_change()
        with self._cleaned():
            await self._compose(judged.source.stack).up(judged)

    async def down(self, stack: str, volumes: bool) -> None:
        self._check_may_change()
        with self._cleaned():
            await self._compose(stack).down(volumes)

    def _check_may_change(self) -> None:
        """A rehearsal only looks, whatever it is that asks."""
        if self._looks:
            raise RuntimeError("a rehearsal changes nothing")

    def _compose(self, stack: str, folder: Path | None = None) -> Compose:
        place = self._places.get(stack)
        if place is None:
            place = self._places[stack] = self._stack.enter_context(workplace(self._folder / stack))
        return Compose(stack, self._engine, place, folder or place, self._holds)

    async def volumes(self) -> Sequence[Json]:
        rows: list[Json] = (await self._ask("GET", "/volumes")).get("Volumes") or []
        return rows

    async def logs(self, name: str, lines: int, *, stamped: bool = False) -> Tail:
        found = await super().logs(name, lines, stamped=stamped)
        return Tail(self._redactor.text(found.text), found.truncated)

    # --- what is remembered -------------------------------------------------------------------------------------------

    async def kept(self, stack: str) -> Kept | None:
        found = await asyncio.to_thread(self._records.get, self._target, stack)
        if found is not None:
            self._hide(found.environment)
        return found

    async def keep(self, judged: Judged, given: Mapping[str, str]) -> None:
        self._check_may_change()
        kept = Kept(judged.source, judged.commit, dict(judged.config), dict(given), dict(judged.environment))
        await asyncio.to_thread(self._records.put, self._target, kept)

    async def forget(self, stack: str) -> None:
        self._check_may_change()
        await asyncio.to_thread(self._records.drop, self._target, stack)
        await asyncio.to_thread(shutil.rmtree, self._folder / stack, ignore_errors=True)

    # --- what is not told ---------------------------------------------------------------------------------------------

    _known: tuple[str, ...] = ()

    def _hide(self, variables: Mapping[str, str]) -> None:
        """Variables that look secret are told nowhere from here on, not even in what a container logs."""
        plain = Redactor()
        secret = [value for name, value in variables.items() if MASK in str(plain.value({name: value}).get(name))]
        self._known = tuple(dict.fromkeys([*self._known, *secret]))
        self._redactor = Redactor(self._known)

    @contextmanager
    def _cleaned(self) -> Iterator[None]:
        try:
            yield
        except GatewayError as error:
            error.message = self._redactor.text(error.message)
            error.details = self._redactor.value(error.details)
            raise


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def judged(
    judge: StackJudge,
    compose: Compose,
    source: Source,
    commit: str,
    checkout: Path,
    given: Mapping[str, str],
    hide: Callable[[Mapping[str, str]], None] = lambda _: None,
) -> Judged:
    """What a checkout comes to: its files are judged before Compose reads them, what it makes of them after."""
    documents = await asyncio.to_thread(_documents, judge, checkout, source.file)
    dotenv = await asyncio.to_thread(_text_of, (checkout / source.file).parent / ".env", missing="")
    environment = judge.variables(given, dotenv)
    hide(environment)
    resolved, unset = await compose.config(checkout / source.file, environment)
    config, more = await asyncio.to_thread(carried, resolved, checkout, source.stack)
    environment = {**environment, **more}
    found = judge.resolved(source, commit, config, checkout=str(checkout), environment=environment, documents=documents)
    return replace(found, unset=tuple(unset))


def _documents(judge: StackJudge, checkout: Path, file: str) -> list[Document]:
    """The Compose files of a checkout that Compose is going to read, each judged before."""
    found: dict[str, Document] = {}
    waiting = [file]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if len(found) >= MOST_FILES:
            raise Denied(f"the stack has more than {MOST_FILES} Compose files", code="compose_refused")
        found[name] = document = judge.document(name, _text_of(checkout / name, name=name))
        waiting.extend(document.more)
        for other in document.plain:
            _text_of(checkout / other, missing="")
    return [found[file], *(one for name, one in found.items() if name != file)]


def _text_of(path: Path, missing: str | None = None, name: str = "") -> str:
    """A file of a checkout, whose links all stay inside. Raises `NotFound` and `Denied`."""
    name = name or path.name
    try:
        if not path.is_file():
            if missing is not None and not path.exists():
                return missing
            raise NotFound(f"the repository has no file {name}", hint="compose_file is a path in the repository.")
        with path.open("rb") as opened:
            raw = opened.read(MOST_ENV_FILE + 1)
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Denied(f"{name} can't be read as UTF-8 text", code="compose_refused") from error
    if len(raw) > MOST_ENV_FILE:
        raise Denied(f"{name} is larger than {MOST_ENV_FILE // 1024} KiB", code="compose_refused")
    return text


async def stacks_at(
    base_url: str, permit: Permit, stack: AsyncExitStack, surroundings: Surroundings, *, tls: Tls | None = None
) -> EngineStacks:
    """The Stacks port for the engine at `unix://PATH` or `tcp://HOST:PORT`."""
    certificates = str(Path(tls.ca).parent) if tls else None
    return EngineStacks(client_for(base_url, tls), permit, Engine(base_url, certificates), surroundings, stack)
