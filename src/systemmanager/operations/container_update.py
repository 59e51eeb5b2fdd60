"""Recreate a container on a newer image, without loss, and with a way back until the new one has proved itself.

The order of steps leaves a container by the original name, or one beside it that says what it is:

    1  pull, make the new container as NAME.update           the old one runs on, untouched
    2  stop the old one, rename it NAME.before-update        its files, volumes and settings stay
    3  rename the new one NAME, start it, wait until it is healthy
    4  remove the old one

Whatever goes wrong from 2 on, cancellation and deadline included, undoes 3 and 2.
"""

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from systemmanager.errors import (
    EngineRefused,
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
from systemmanager.params import ContainerName
from systemmanager.plan import Change, Plan
from systemmanager.ports import Docker, ForeignText, Json, Result

SETTLE = 5.0
"""Seconds that a container without a health check has to run to be taken for healthy."""

HEALTHY = 300.0
"""Seconds that a container with a health check has to become healthy."""

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
    job="once",
    open_world=True,
)
async def update_docker_container(
    docker: Docker, name_or_id: ContainerName, pull_latest: bool = True
) -> ContainerUpdate:
    """Recreate a container on the newest image of its tag with all its settings; the old one comes back if it fails."""
    found = await _found(docker, name_or_id)
    if found["Id"] in _busy:
        raise EngineRefused(f"{name_or_id!r} is being updated already", retryable=True)
    mine = {found["Id"]}
    _busy.update(mine)
    try:
        return await _update(docker, found, pull_latest, mine)
    finally:
        _busy.difference_update(mine)


async def _update(docker: Docker, found: Json, pull_latest: bool, mine: set[str]) -> ContainerUpdate:
    name = found["Name"].lstrip("/")
    await _check(docker, found, name)
    image_name, tag = reference_of(found)
    before = await image_or_none(docker, found["Image"])
    reference = f"{image_name}:{tag}"
    if pull_latest:
        image = await docker.pull(image_name, tag, await _platform(docker, before))
    else:
        image = await docker.inspect_image(reference)
    answer = {"name": name, "image": reference, "image_id": short_id(image["Id"])}
    if image["Id"] == found["Image"]:
        return ContainerUpdate(**answer, updated=False, id=found["Id"][:12], state=found["State"]["Status"])
    plan = recreation(found, before, found["Config"]["Image"], await _borrowed(docker, found))
    change = Exchange(docker, found, name, plan, await _made(docker, f"{name}.update", plan))
    mine.add(change.new)
    _busy.add(change.new)
    note = await change.carry_out()
    state = await docker.inspect(change.new)
    return ContainerUpdate(
        **answer,
        updated=True,
        previous_image_id=short_id(found["Image"]),
        id=change.new[:12],
        state=state["State"]["Status"],
        note=note,
    )


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


async def _check(docker: Docker, found: Json, name: str) -> None:
    """Refuse what could not be undone, or would break others. Clears the rest of a call that was cut off."""
    labels = found["Config"].get("Labels") or {}
    if "com.docker.swarm.task.id" in labels:
        raise EngineRefused(
            f"{name!r} belongs to a Swarm service", hint="Update the service: Swarm replaces its tasks."
        )
    if found["State"].get("Paused"):
        raise EngineRefused(f"{name!r} is paused", hint="Unpause or stop it first.")
    if socket.gethostname() == found["Id"][:12]:
        raise EngineRefused(f"{name!r} is the container that this gateway runs in", hint="Update it from outside.")
    rows = {container_name(row): row for row in await docker.containers()}
    if f"{name}.before-update" in rows:
        raise EngineRefused(
            f"an update of {name!r} was cut off, or runs elsewhere: {name}.before-update is the container as it was",
            hint=f"Keep the new one: docker rm {name}.before-update. Or go back: docker rm -f {name} && "
            f"docker rename {name}.before-update {name} && docker start {name}.",
        )
    if (left := rows.get(f"{name}.update")) and left["State"] == "created":
        await docker.remove(left["Id"])
    sharing = [
        other
        for other, row in rows.items()
        if row["State"] == "running" and row.get("HostConfig", {}).get("NetworkMode") == f"container:{found['Id']}"
    ]
    if sharing:
        raise EngineRefused(
            f"{', '.join(sharing)} uses the network of {name!r} and would lose it",
            hint="Stop it first, and recreate it afterwards.",
        )
    known = {network["Name"] for network in await docker.networks()}
    if gone := [network for network in found["NetworkSettings"]["Networks"] if network not in known]:
        raise EngineRefused(f"{name!r} is in networks that are gone: {', '.join(gone)}; it could not be started again")


async def _platform(docker: Docker, image: Json | None) -> str | None:
    """The platform to pull for, where the container's is not the engine's own."""
    if image is None or image.get("Architecture") in ("", None, (await docker.version()).get("Arch")):
        return None
    return "/".join(filter(None, (image.get("Os"), image["Architecture"], image.get("Variant"))))


async def _borrowed(docker: Docker, found: Json) -> set[str]:
    """Volumes that come from other containers, which the new container gets from them again."""
    lenders = [entry.partition(":")[0] for entry in found["HostConfig"].get("VolumesFrom") or []]
    mounts = [mount for lender in lenders for mount in (await docker.inspect(lender)).get("Mounts") or []]
    return {mount["Name"] for mount in mounts if mount.get("Name")}


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
            raise RolledBack(
                f"{self.name!r} could not be updated: {error.message}",
                hint=f"{self.name!r} is back on its previous image, as it was.",
                details=error.details,
            ) from error
        return await to_the_end(self._remove_old())

    async def _exchange(self) -> None:
        """The steps. None is left while it is on its way: the engine would go on with it under the way back."""
        docker = self.docker
        if self.runs:
            self.stopping = True
            await to_the_end(docker.act("stop", self.old))
            self.stopping = False
        if not await self._vanished():
            await to_the_end(docker.rename(self.old, f"{self.name}.before-update"))
        await to_the_end(docker.rename(self.new, self.name))
        if self.runs:
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
                raise EngineRefused(f"the new container failed: {problem}", details=await self._last_words())
            if health == "healthy" or (not checked and waited >= SETTLE):
                return
            await anyio.sleep(0.25)

    async def _last_words(self) -> Json | None:
        try:
            return {"logs": (await self.docker.logs(self.new, 20)).text[-4000:]}
        except GatewayError:  # its log goes where the engine can't read it, or it is gone
            return None

    @asynccontextmanager
    async def _undone_on_failure(self) -> AsyncIterator[None]:
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                await to_the_end(self._undo())

    async def _undo(self) -> None:
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
