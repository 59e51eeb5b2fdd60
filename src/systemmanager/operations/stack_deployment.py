"""One deployment of a stack: what is there, what changes, and the way back.

Images are pulled or built first, and only then anything that runs is touched. From there on every failure, cancellation
and deadline included, brings back what ran before.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass

from systemmanager.errors import CommandFailed, EngineRefused, GatewayError, NotFound, RollbackFailed, RolledBack
from systemmanager.operations import stack_health
from systemmanager.operations.stack_changes import (
    PROJECT,
    Member,
    StackDifference,
    difference,
    image_of,
    members,
    unchanged,
)
from systemmanager.operations.stack_health import ServiceState
from systemmanager.operations.uncut import insist, to_the_end
from systemmanager.ports import Json, Result
from systemmanager.stacks import Judged, Stacks

_BEFORE = "before"
"""What a job keeps: the containers as they were."""


class StackDeployment(Result):
    changed: bool
    difference: StackDifference


async def own_containers(stacks: Stacks, stack: str) -> list[Member]:
    """The stack's containers. Raises `EngineRefused` for a Compose project that no gateway deployed."""
    own = members(await stacks.containers(), stack)
    if any(one.stack != stack for one in own):
        raise EngineRefused(
            f"there is a Compose project {stack!r} that was not deployed as a stack", hint="Choose another stack_name."
        )
    return own


async def volumes_of(stacks: Stacks, stack: str) -> list[str]:
    rows = await stacks.volumes()
    return sorted(row["Name"] for row in rows if (row.get("Labels") or {}).get(PROJECT) == stack)


async def states_of(stacks: Stacks, stack: str) -> list[ServiceState]:
    found = []
    for one in members(await stacks.containers(), stack):
        with suppress(NotFound):
            found.append(stack_health.state_of(one, await stacks.inspect(one.id)))
    return sorted(found, key=lambda one: (one.service, one.container))


async def deployment_difference(stacks: Stacks, wanted: Judged) -> StackDifference:
    """What deploying would change; changes nothing."""
    stack = wanted.source.stack
    own, kept = await own_containers(stacks, stack), await stacks.kept(stack)
    before, images = kept.config if kept and own else None, await _digests(stacks, wanted)
    return difference(own, before, wanted, images, await volumes_of(stacks, stack))


async def _digests(stacks: Stacks, wanted: Judged) -> dict[str, str]:
    """The digest of each image that the engine has, by its name: its registry's, else its id."""
    found = {}
    for name in {image_of(wanted, service) for service in wanted.digests}:
        with suppress(NotFound):
            image = await stacks.inspect_image(name)
            pulled = sorted(image.get("RepoDigests") or (), key=lambda one: not name.startswith(one.partition("@")[0]))
            found[name] = pulled[0].partition("@")[2] if pulled else image["Id"]
    return found


# --- the change, and the way back ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WayBack:
    """What ran before: `judged` is None when nothing did. `images` are the ids that its services ran on."""

    judged: Judged | None
    images: Mapping[str, str]
    commits: Mapping[str, str]


async def deploy(stacks: Stacks, wanted: Judged, given: Mapping[str, str]) -> StackDeployment:
    stack = wanted.source.stack
    own = await own_containers(stacks, stack)
    await check_names(stacks, wanted, own)
    difference = await deployment_difference(stacks, wanted)
    states = await states_of(stacks, stack)
    begun = stacks.following is not None and _BEFORE in stacks.following.kept  # up perhaps, and not proved
    if difference.nothing and own and not begun and not any(one.problem or one.state != "running" for one in states):
        await stacks.keep(wanted, given)
        return StackDeployment(changed=False, difference=difference)
    back = await _way_back(stacks, stack, _as_begun(stacks, own), given)
    await _images(stacks, wanted)
    difference = difference.of_images(await _digests(stacks, wanted))
    before = {one.id: (await stacks.inspect(one.id)).get("RestartCount", 0) for one in own}
    wanted = stacks.adjusted(wanted, commits=await _kept_commits(stacks, own, wanted))
    async with _undone_on_failure(stacks, stack, back):
        try:
            await stacks.up(wanted)
            await stack_health.prove(stacks, stack, _expected(wanted), before, _serving(wanted, own))
        except CommandFailed as error:
            raise (await stack_health.culprit(stacks, stack)) or error from error
        await stacks.keep(wanted, given)
    return StackDeployment(changed=True, difference=difference)


def _as_begun(stacks: Stacks, own: list[Member]) -> list[Member]:
    """The stack's containers before this job touched any: those are the way back, also for the next process."""
    following = stacks.following
    if following is None:
        return own
    if _BEFORE not in following.kept:
        following.keep(_BEFORE, [asdict(one) for one in own])
    return [Member(**one) for one in following.kept[_BEFORE]]


def _expected(wanted: Judged) -> list[str]:
    """The services that have containers."""
    services = wanted.config["services"]
    return [
        name
        for name, one in services.items()
        if (one.get("deploy") or {}).get("replicas", one.get("scale", 1)) not in (0, "0")
    ]


def _serving(wanted: Judged, own: Sequence[Member]) -> set[str]:
    """The services that are to go on: those that publish a port, and those that ran before; what others wait for to
    end is none. One with a health check is unhealthy once it has ended."""
    services = wanted.config["services"]
    asked = {name for name, one in services.items() if one.get("ports")}
    waits = [dict(one.get("depends_on") or {}) for one in services.values()]
    ending = {
        name for wait in waits for name, how in wait.items() if how["condition"] == "service_completed_successfully"
    }
    return (asked | {one.service for one in own if one.state == "running"}) - ending


async def check_names(stacks: Stacks, wanted: Judged, own: Sequence[Member]) -> None:
    """Names that others on the engine have: Compose would use their volumes and networks as its own."""
    stack, mine = wanted.source.stack, {one.name for one in own}
    rows = await stacks.containers()
    taken = {name.lstrip("/") for row in rows for name in row.get("Names") or ()} - mine
    wishes = {one.get("container_name") for one in wanted.config["services"].values()}
    if stolen := sorted(name for name in wishes if name in taken):
        raise EngineRefused(f"there is a container {stolen[0]!r} already, which is not of stack {stack!r}")
    for kind, found in (("volume", await stacks.volumes()), ("network", await stacks.networks())):
        owners = {row["Name"]: (row.get("Labels") or {}).get(PROJECT) for row in found}
        for one in (wanted.config.get(f"{kind}s") or {}).values():
            name = (one or {}).get("name")
            if not (one or {}).get("external") and name in owners and owners[name] != stack:
                raise EngineRefused(f"there is a {kind} {name!r} already, which is not of stack {stack!r}")


async def _images(stacks: Stacks, wanted: Judged) -> None:
    """Have every image on the engine, so that what runs is only touched when all is there."""
    if any(one.get("build") for one in wanted.config["services"].values()):
        await stacks.build(wanted)
    for name, one in wanted.config["services"].items():
        if one.get("build"):
            continue
        reference = image_of(wanted, name)
        try:
            if one.get("pull_policy") == "always":
                raise NotFound(reference)
            await stacks.inspect_image(reference)
        except NotFound:
            head, _, last = reference.partition("@")[0].rpartition("/")
            bare, _, tag = last.partition(":")
            image = reference if "@" in reference else f"{head}/{bare}" if head else bare
            await stacks.pull(image, tag or "latest", one.get("platform"))


async def _kept_commits(stacks: Stacks, own: Sequence[Member], wanted: Judged) -> dict[str, str]:
    """The commits of services that stay as they are, so that a new commit alone restarts nothing."""
    same = unchanged(own, wanted)
    for one in own:
        if one.service not in same or not wanted.config["services"][one.service].get("build"):
            continue
        if (await stacks.inspect_image(image_of(wanted, one.service)))["Id"] != one.image_id:
            del same[one.service]
    return same


async def _way_back(stacks: Stacks, stack: str, own: Sequence[Member], given: Mapping[str, str]) -> WayBack:
    """What would be brought back. Raises `EngineRefused` when there is something to lose and no way back to it."""
    if not own:
        return WayBack(None, {}, {})
    last = own[-1]
    images = {one.service: one.image_id for one in own if one.image_id}
    commits = {one.service: one.commit for one in own}
    kept = await stacks.kept(stack)
    digests = {one.service: one.digest for one in own}
    try:
        judged = await stacks.again(kept) if kept else None
        if judged is None or any(judged.digests.get(name) != digest for name, digest in digests.items()):
            judged = await stacks.resolve(stack, last.repo, last.branch, last.file, given, last.commit)
    except GatewayError as error:
        raise EngineRefused(
            f"stack {stack!r} is not changed, as there would be no way back to what runs: {error.message}",
            hint="remove_stack, then deploy_stack, if it may be gone in between. Volumes stay.",
            details=error.details,
        ) from error
    return WayBack(judged, images, commits)


@asynccontextmanager
async def _undone_on_failure(stacks: Stacks, stack: str, back: WayBack) -> AsyncIterator[None]:
    done = False
    try:
        yield
        done = True
    except GatewayError as error:
        await to_the_end(_undo(stacks, stack, back))
        done = True
        commit = back.judged.commit[:12] if back.judged else None
        raise RolledBack(
            f"stack {stack!r} could not be deployed: {error.message}",
            hint=f"What ran before, commit {commit}, is back." if commit else "It is removed again; its volumes stay.",
            details=error.details,
        ) from error
    finally:
        if not done:
            await to_the_end(_undo(stacks, stack, back))


async def _undo(stacks: Stacks, stack: str, back: WayBack) -> None:
    try:
        await insist(lambda: _step_back(stacks, stack, back))
    except (GatewayError, TimeoutError) as error:
        raise RollbackFailed(
            f"stack {stack!r} could not be deployed, and what ran before not be brought back: {error}",
            hint="Look with get_stack_status; deploy_stack with the previous branch, or remove_stack.",
            details=getattr(error, "details", None),
        ) from error


async def _step_back(stacks: Stacks, stack: str, back: WayBack) -> None:
    if back.judged is None:
        await stacks.down(stack, volumes=False)
        return
    moved: dict[str, str] = {}
    for service, id in back.images.items():
        found: Json | None = None
        with suppress(NotFound):
            found = await stacks.inspect_image(image_of(back.judged, service))
        if found is None or found["Id"] != id:
            moved[service] = id
    await stacks.up(stacks.adjusted(back.judged, back.commits, moved))
