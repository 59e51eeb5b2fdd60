"""Compose stacks from git: deploy, update, list, look at, remove.

A deployment fetches, resolves and judges first; then images are pulled or built, and only then anything that runs is
touched. From there on every failure, cancellation and deadline included, brings back what ran before.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from pydantic import Field

from systemmanager.errors import (
    CommandFailed,
    EngineRefused,
    GatewayError,
    NotConfigured,
    NotFound,
    RollbackFailed,
    RolledBack,
    did_you_mean,
)
from systemmanager.operation import Risk, operation
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
from systemmanager.params import Branch, ComposeFile, EnvVars, RepoUrl, StackName
from systemmanager.ports import Json, Page, Result
from systemmanager.stacks import Judged, Kept, Stacks


class StackRow(Result):
    stack: str
    commit: str | None
    repo: str
    branch: str
    file: str
    services: int
    running: int


class StackList(Page):
    stacks: list[StackRow]


class StackStatus(Result):
    stack: str
    ok: bool = Field(description="Every service runs, is healthy or ended well.")
    commit: str | None
    repo: str
    branch: str
    file: str
    services: list[ServiceState]
    volumes: list[str]


class StackDeployment(Result):
    changed: bool
    difference: StackDifference
    services: list[ServiceState]


class StackRemoval(Result):
    stack: str
    containers: list[str]
    volumes_removed: list[str]
    volumes_kept: list[str]


READS = ("container:read", "stack:deploy")


@operation(scope=READS, capability=READS, risk=Risk.LOW)
async def list_stacks(stacks: Stacks) -> StackList:
    """Compose stacks that gateways deployed here, with repository, branch and deployed commit."""
    by_name: dict[str, list[Member]] = {}
    for one in members(await stacks.containers()):
        by_name.setdefault(one.stack, []).append(one)
    rows = [
        StackRow(
            stack=name,
            commit=own[-1].commit or None,
            repo=own[-1].repo,
            branch=own[-1].branch,
            file=own[-1].file,
            services=len({one.service for one in own}),
            running=sum(one.state == "running" for one in own),
        )
        for name, own in sorted(by_name.items())
    ]
    return StackList(total=len(rows), stacks=rows)


@operation(scope=READS, capability=READS, risk=Risk.LOW)
async def get_stack_status(stacks: Stacks, stack_name: StackName) -> StackStatus:
    """One Compose stack: deployed commit, and each service's state, health, restarts and problem."""
    own = await _deployed(stacks, stack_name)
    states = await _states(stacks, stack_name)
    last = own[-1]
    return StackStatus(
        stack=stack_name,
        ok=not any(one.problem for one in states),
        commit=last.commit or None,
        repo=last.repo,
        branch=last.branch,
        file=last.file,
        services=states,
        volumes=await _volumes(stacks, stack_name),
    )


@operation(
    scope="stack:deploy",
    capability="stack:deploy",
    risk=Risk.CRITICAL,
    timeout=900,
    roles={"repo": "repo_url"},
    open_world=True,
)
async def deploy_stack(
    stacks: Stacks,
    stack_name: StackName,
    repo_url: RepoUrl,
    branch: Branch = "main",
    compose_file: ComposeFile = "docker-compose.yml",
    env_vars: EnvVars = {},  # noqa: B006  never changed, and it is the schema's default
) -> StackDeployment:
    """Deploy a Compose stack from a git branch; if it does not become healthy, what ran before comes back."""
    async with stacks.alone(stack_name):
        wanted = await stacks.resolve(stack_name, repo_url, branch, compose_file, env_vars)
        return await _deploy(stacks, wanted, env_vars)


@operation(scope="stack:deploy", capability="stack:deploy", risk=Risk.CRITICAL, timeout=900, open_world=True)
async def update_stack(stacks: Stacks, stack_name: StackName) -> StackDeployment:
    """Deploy the newest commit of a stack's branch, with the variables that it was deployed with."""
    async with stacks.alone(stack_name):
        kept = await _kept(stacks, stack_name)
        one = kept.source
        wanted = await stacks.resolve(stack_name, one.repo, one.branch, one.file, kept.given)
        return await _deploy(stacks, wanted, kept.given)


@operation(scope="stack:deploy", capability="stack:deploy", risk=Risk.CRITICAL, timeout=180)
async def remove_stack(stacks: Stacks, stack_name: StackName, remove_volumes: bool = False) -> StackRemoval:
    """Remove a stack's containers and networks; its volumes only with remove_volumes."""
    async with stacks.alone(stack_name):
        own = await _deployed(stacks, stack_name)
        before = await _volumes(stacks, stack_name)
        await stacks.down(stack_name, remove_volumes)
        await stacks.forget(stack_name)
        after = await _volumes(stacks, stack_name)
    return StackRemoval(
        stack=stack_name,
        containers=[one.name for one in own],
        volumes_removed=sorted(set(before) - set(after)),
        volumes_kept=after,
    )


# --- what is there ---------------------------------------------------------------------------------------------------


async def _own(stacks: Stacks, stack: str) -> list[Member]:
    """The stack's containers. Raises `EngineRefused` for a Compose project that no gateway deployed."""
    own = members(await stacks.containers(), stack)
    if any(one.stack != stack for one in own):
        raise EngineRefused(
            f"there is a Compose project {stack!r} that was not deployed as a stack", hint="Choose another stack_name."
        )
    return own


async def _deployed(stacks: Stacks, stack: str) -> list[Member]:
    if own := await _own(stacks, stack):
        return own
    names = {one.stack for one in members(await stacks.containers())}
    raise NotFound(f"there is no stack {stack!r}", hint=did_you_mean(stack, names))


async def _kept(stacks: Stacks, stack: str) -> Kept:
    if kept := await stacks.kept(stack):
        return kept
    await _deployed(stacks, stack)
    raise NotConfigured(
        f"stack {stack!r} was deployed by another gateway, which has its variables",
        hint="Update it there, or call deploy_stack with all its env_vars.",
    )


async def _volumes(stacks: Stacks, stack: str) -> list[str]:
    rows = await stacks.volumes()
    return sorted(row["Name"] for row in rows if (row.get("Labels") or {}).get(PROJECT) == stack)


async def _states(stacks: Stacks, stack: str) -> list[ServiceState]:
    found = []
    for one in members(await stacks.containers(), stack):
        with suppress(NotFound):
            found.append(stack_health.state_of(one, await stacks.inspect(one.id)))
    return sorted(found, key=lambda one: (one.service, one.container))


async def deployment_difference(stacks: Stacks, wanted: Judged) -> StackDifference:
    """What deploying would change; changes nothing."""
    stack = wanted.source.stack
    own, kept = await _own(stacks, stack), await stacks.kept(stack)
    images: dict[str, str | None] = {}
    for service in wanted.digests:
        name = image_of(wanted, service)
        with suppress(NotFound):
            images[name] = (await stacks.inspect_image(name))["Id"]
    return difference(own, kept.config if kept and own else None, wanted, images)


# --- the change, and the way back ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WayBack:
    """What ran before: `judged` is None when nothing did. `images` are the ids that its services ran on."""

    judged: Judged | None
    images: Mapping[str, str]
    commits: Mapping[str, str]


async def _deploy(stacks: Stacks, wanted: Judged, given: Mapping[str, str]) -> StackDeployment:
    stack = wanted.source.stack
    own = await _own(stacks, stack)
    await _check_names(stacks, wanted, own)
    difference = await deployment_difference(stacks, wanted)
    states = await _states(stacks, stack)
    if difference.nothing and own and not any(one.problem or one.state != "running" for one in states):
        await stacks.keep(wanted, given)
        return StackDeployment(changed=False, difference=difference, services=states)
    back = await _way_back(stacks, stack, own, given)
    await _images(stacks, wanted)
    before = {one.id: (await stacks.inspect(one.id)).get("RestartCount", 0) for one in own}
    wanted = stacks.adjusted(wanted, commits=await _kept_commits(stacks, own, wanted))
    async with _undone_on_failure(stacks, stack, back):
        try:
            await stacks.up(wanted)
            await stack_health.prove(stacks, stack, _expected(wanted), before)
        except CommandFailed as error:
            raise (await stack_health.culprit(stacks, stack)) or error from error
        await stacks.keep(wanted, given)
    return StackDeployment(changed=True, difference=difference, services=await _states(stacks, stack))


def _expected(wanted: Judged) -> list[str]:
    """The services that have containers."""
    services = wanted.config["services"]
    return [
        name
        for name, one in services.items()
        if (one.get("deploy") or {}).get("replicas", one.get("scale", 1)) not in (0, "0")
    ]


async def _check_names(stacks: Stacks, wanted: Judged, own: Sequence[Member]) -> None:
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
