"""Recreate a container on a newer image, without loss, and with a way back until the new one has proved itself.

The order of steps leaves a container by the original name, or one beside it that says what it is:

    1  pull, make the new container as NAME.update           the old one runs on, untouched
    2  stop the old one, rename it NAME.before-update        its files, volumes and settings stay
    3  rename the new one NAME, start it, wait until it is healthy
    4  remove the old one

Whatever goes wrong from 2 on, cancellation and deadline included, undoes 3 and 2. As a job it writes down before 2 what
it is about to exchange: the next process looks at what is there, and goes on, or puts the old one back.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import anyio

from systemmanager.errors import (
    EngineRefused,
    EngineUnavailable,
    GatewayError,
    NotFound,
    RollbackFailed,
    RolledBack,
)
from systemmanager.operation import Risk, operation
from systemmanager.operations.containers import container_name, standing
from systemmanager.operations.images import image_change, image_or_none, newest, short_id
from systemmanager.operations.recreation import Recreation, recreation, reference_of
from systemmanager.operations.uncut import insist, to_the_end
from systemmanager.operations.update_conditions import borrowed_by, check, platform_of
from systemmanager.params import ContainerName
from systemmanager.plan import Change, Plan
from systemmanager.ports import Docker, ForeignText, Json, Result

SETTLE = 5.0
"""Seconds that a container without a health check has to run to be taken for healthy."""

HEALTHY = 300.0
"""Seconds that a container with a health check has to become healthy."""

_EXCHANGE, _FAILED = "exchange", "failed"
"""What a job keeps: what it is about to exchange; that it failed, and why."""

_busy: set[str] = set()


class ContainerUpdate(Result):
    name: str
    updated: bool
    image: str
    image_id: str
    previous_image_id: str | None = None
    id: str
    state: str
    note: ForeignText | None = None


async def plan_update(docker: Docker, name_or_id: ContainerName, pull_latest: bool = True) -> Plan:
    """What `update_docker_container` would do."""
    found = await docker.inspect(name_or_id)
    name, reference = found["Name"].lstrip("/"), ":".join(reference_of(found))
    before, unknown = await image_or_none(docker, found["Image"]), None
    if pull_latest:
        now, unknown = await newest(docker, reference)
        changes = image_change(f"container {name}", before, now)
    else:
        now = str((await docker.inspect_image(reference))["Id"])
        old, new = (f"image {short_id(id)}" for id in (found["Image"], now))
        changes = [Change(what=f"container {name}", field="image", before=old, after=new)] if old != new else []
    notes = [f"{name} is made anew and has a new id; it is away for as long as it takes to start."] if changes else []
    why = f"Its image of now stays on the engine as {short_id(found['Image'])}; a failed update is undone by itself."
    return Plan(
        changes=changes,
        preconditions={**standing(found), "newest image": now},
        no_inverse=why if changes else "Nothing would change.",
        notes=[*notes, *([unknown] if unknown else [])] or None,
    )


@operation(
    scope="container:admin",
    capability="container:admin",
    risk=Risk.CRITICAL,
    timeout=600,
    plan=plan_update,
    job="steps",
    open_world=True,
)
async def update_docker_container(
    docker: Docker, name_or_id: ContainerName, pull_latest: bool = True
) -> ContainerUpdate:
    """Recreate a container on the newest image of its tag with all its settings; the old one comes back if it fails."""
    begun = _begun(docker)
    found = begun.found if begun else await _found(docker, name_or_id)
    if found["Id"] in _busy:
        raise EngineRefused(f"{name_or_id!r} is being updated already", retryable=True)
    mine = {found["Id"]}
    _busy.update(mine)
    try:
        if begun is not None:
            return await _go_on(docker, begun, pull_latest, mine)
        return await _update(docker, found, pull_latest, mine)
    finally:
        _busy.difference_update(mine)


def _begun(docker: Docker) -> "Exchange | None":
    """The exchange that this job was in the middle of when its gateway was stopped."""
    kept = docker.following.kept.get(_EXCHANGE) if docker.following is not None else None
    if kept is None:
        return None
    plan = Recreation({}, kept["connect"], kept["leave"])
    return Exchange(docker, kept["found"], kept["found"]["Name"].lstrip("/"), plan, kept["new"])


async def _go_on(docker: Docker, change: "Exchange", pull_latest: bool, mine: set[str]) -> ContainerUpdate:
    """From wherever it was: to its end where the new container is there, else once more from the old one, which is put
    back first. One that had failed only has its way back finished."""
    assert docker.following is not None
    await _engine_there(docker)
    if failed := docker.following.kept.get(_FAILED):
        await to_the_end(change.undo())
        raise change.rolled_back(failed["message"], failed["details"])
    if await change.there(change.new):
        mine.add(change.new)
        return await _carried_out(docker, change)
    if not (change.found["HostConfig"].get("AutoRemove") or await change.there(change.old)):
        raise NotFound(f"{change.name!r} was removed while its update was cut off; nothing is left of it")
    await to_the_end(change.undo())
    return await _update(docker, await docker.inspect(change.name), pull_latest, mine)


async def _engine_there(docker: Docker) -> None:
    """The engine may be coming back as the gateway does."""

    async def asked() -> None:
        await docker.version()

    try:
        await insist(asked)
    except TimeoutError as error:
        raise EngineUnavailable("the engine does not answer, so the update that was cut off can't go on") from error


async def _update(docker: Docker, found: Json, pull_latest: bool, mine: set[str]) -> ContainerUpdate:
    name = found["Name"].lstrip("/")
    await check(docker, found, name)
    image_name, tag = reference_of(found)
    before = await image_or_none(docker, found["Image"])
    reference = f"{image_name}:{tag}"
    if pull_latest:
        image = await docker.pull(image_name, tag, await platform_of(docker, before))
    else:
        image = await docker.inspect_image(reference)
    if image["Id"] == found["Image"]:
        return ContainerUpdate(
            name=name,
            image=reference,
            image_id=short_id(image["Id"]),
            updated=False,
            id=found["Id"][:12],
            state=found["State"]["Status"],
        )
    plan = recreation(found, before, found["Config"]["Image"], await borrowed_by(docker, found))
    change = Exchange(docker, found, name, plan, await _made(docker, f"{name}.update", plan))
    mine.add(change.new)
    _keep(docker, _EXCHANGE, {"found": found, "connect": plan.connect, "leave": plan.leave, "new": change.new})
    return await _carried_out(docker, change)


async def _carried_out(docker: Docker, change: "Exchange") -> ContainerUpdate:
    _busy.add(change.new)
    note = await change.carry_out()
    now = await docker.inspect(change.new)
    return ContainerUpdate(
        name=change.name,
        image=":".join(reference_of(change.found)),
        image_id=short_id(now["Image"]),
        updated=True,
        previous_image_id=short_id(change.found["Image"]),
        id=change.new[:12],
        state=now["State"]["Status"],
        note=note,
    )


def _keep(docker: Docker, name: str, value: Json) -> None:
    """Write down for the next process, where this is a job."""
    if docker.following is not None:
        docker.following.keep(name, value)


# --- before anything changes -----------------------------------------------------------------------------------------


async def _found(docker: Docker, name: str) -> Json:
    try:
        return await docker.inspect(name)
    except NotFound:
        rows = {container_name(row): row for row in await docker.containers()}
        if f"{name}.before-update" not in rows:
            raise
    await docker.rename(f"{name}.before-update", name)
    await docker.act("start", name)
    raise RolledBack(
        f"an earlier update of {name!r} was interrupted; {name!r} is back as it was", hint="Call again to update it."
    )


async def _made(docker: Docker, name: str, plan: Recreation) -> str:
    """A container as planned, not started. What fails here leaves nothing behind."""
    made = False
    try:
        id = await to_the_end(docker.create(name, plan.body))
        for network, endpoint in plan.connect.items():
            await docker.connect(network, id, endpoint)
        if plan.leave:
            await docker.disconnect(plan.leave, id)
        made = True
    finally:
        if not made:
            await to_the_end(insist(lambda: docker.remove(name)))
    return id


# --- the change, and the way back ------------------------------------------------------------------------------------


@dataclass
class Exchange:
    """One container in exchange for another: `found` as it was, `new` the id of what takes its place."""

    docker: Docker
    found: Json
    name: str
    plan: Recreation
    new: str
    stopping: bool = False

    @property
    def old(self) -> str:
        return str(self.found["Id"])

    @property
    def runs(self) -> bool:
        return bool(self.found["State"]["Running"])

    async def carry_out(self) -> str | None:
        """Put the new container in place. Answers what is left to do by hand, if anything."""
        try:
            async with self._undone_on_failure():
                await self._exchange()
        except RollbackFailed:
            raise
        except GatewayError as error:
            raise self.rolled_back(error.message, error.details) from error
        return await to_the_end(self._remove_old())

    def rolled_back(self, why: str, details: Json | None) -> RolledBack:
        return RolledBack(
            f"{self.name!r} could not be updated: {why}",
            hint=f"{self.name!r} is back on its previous image, as it was.",
            details=details,
        )

    async def there(self, id: str) -> Json | None:
        """A container of the exchange as it is now; None when it is gone."""
        with suppress(NotFound):
            return await self.docker.inspect(id)
        return None

    async def _exchange(self) -> None:
        """The steps that are left. None is left while it is on its way: the engine would go on with it under the way
        back."""
        docker, old, new = self.docker, await self.there(self.old), await self.there(self.new)
        if new is None:
            raise EngineRefused("the new container is gone")
        if self.runs and old is not None:
            self.stopping = True
            await to_the_end(docker.act("stop", self.old))
            self.stopping = False
        aside = f"{self.name}.before-update"
        if old is not None and old["Name"].lstrip("/") != aside and not await self._vanished():
            await to_the_end(docker.rename(self.old, aside))
        if new["Name"].lstrip("/") != self.name:
            await to_the_end(docker.rename(self.new, self.name))
        if self.runs:
            if not new["State"]["Running"]:
                await to_the_end(docker.act("start", self.new))
            await self._proves_itself()

    async def _vanished(self) -> bool:
        """Whether the old container, stopped now, is removed by the engine because it was started with `--rm`."""
        if not (self.runs and self.found["HostConfig"].get("AutoRemove")):
            return False
        while any(row["Id"] == self.old for row in await self.docker.containers()):
            await anyio.sleep(0.1)
        return True

    async def _proves_itself(self) -> None:
        """Return when the new container is healthy. Raises `EngineRefused` with its last words when it is not."""
        started = time.monotonic()
        while True:
            try:
                found = await self.docker.inspect(self.new)
            except NotFound as error:
                raise EngineRefused("the new container ended at once") from error
            health = (found["State"].get("Health") or {}).get("Status")
            checked = health not in (None, "none")
            waited = time.monotonic() - started
            problem = _problem(found, health) or ("it did not become healthy in time" if waited > HEALTHY else None)
            if problem:
                raise EngineRefused(
                    f"the new container failed: {problem.partition(':')[0]}", details=await self._last_words(problem)
                )
            if health == "healthy" or (not checked and waited >= SETTLE):
                return
            await anyio.sleep(0.25)

    async def _last_words(self, problem: str) -> Json:
        try:
            return {"problem": problem, "logs": (await self.docker.logs(self.new, 20)).text[-4000:]}
        except GatewayError:  # its log goes where the engine can't read it, or it is gone
            return {"problem": problem}

    @asynccontextmanager
    async def _undone_on_failure(self) -> AsyncIterator[None]:
        done = False
        try:
            yield
            done = True
        except GatewayError as error:
            _keep(self.docker, _FAILED, {"message": error.message, "details": error.details})
            raise
        except asyncio.CancelledError:
            if self.docker.following is not None and not self.docker.following.leaving():
                _keep(self.docker, _FAILED, {"message": "it was ended before its time", "details": None})
            raise
        finally:
            if not done:
                await to_the_end(self.undo())

    async def undo(self) -> None:
        """Bring the old container back: its name, and running if it ran. Looks at what is, so it may be repeated."""
        try:
            await insist(self._step_back)
        except (GatewayError, TimeoutError) as error:
            raise RollbackFailed(
                f"{self.name!r} could not be updated, and not be brought back either: {error}",
                hint=f"On the engine: docker rm -f {self.new[:12]}; docker rename {self.old[:12]} {self.name}; "
                f"docker start {self.name}.",
            ) from error

    async def _step_back(self) -> None:
        docker = self.docker
        await docker.remove(self.new, force=True)
        try:
            if self.stopping:  # whether it was stopped was never answered: it may yet happen, so have it over
                await docker.act("stop", self.old)
            old = await docker.inspect(self.old)
        except NotFound:
            await self._make_again()
            return
        if old["Name"].lstrip("/") != self.name:
            await docker.rename(self.old, self.name)
        if self.runs and not old["State"]["Running"]:
            await docker.act("start", self.old)

    async def _make_again(self) -> None:
        """The old container was removed by the engine when it stopped (`--rm`): make it anew, from its own image."""
        rows = {container_name(row): row for row in await self.docker.containers()}
        if self.name not in rows:
            body = {**recreation(self.found, None, self.found["Image"]).body}
            await _made(self.docker, self.name, Recreation(body, self.plan.connect, self.plan.leave))
        await self.docker.act("start", self.name)

    async def _remove_old(self) -> str | None:
        try:
            await insist(lambda: self.docker.remove(self.old))
        except (GatewayError, TimeoutError) as error:
            return f"the old container stays as {self.name}.before-update and has to be removed by hand: {error}"
        return None


def _problem(found: Json, health: str | None) -> str | None:
    state = found["State"]
    if health == "unhealthy":
        checks = (state["Health"].get("Log") or [{}])[-1]
        return f"it is unhealthy: {str(checks.get('Output', '')).strip()[:300]}"
    if state["Status"] == "restarting" or found.get("RestartCount"):
        return f"it dies again and again, with exit status {state['ExitCode']}"
    if not state["Running"]:
        return f"it ended with exit status {state['ExitCode']}"
    return None
