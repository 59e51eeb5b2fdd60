"""Compose stacks from git: deploy, update, list, look at, remove.

A deployment fetches, resolves and judges first; `stack_deployment` does the rest.
"""

from systemmanager.errors import (
    NotConfigured,
    NotFound,
    did_you_mean,
)
from systemmanager.operation import Risk, operation
from systemmanager.operations.stack_changes import (
    Member,
    members,
)
from systemmanager.operations.stack_deployment import (
    StackDeployment,
    check_names,
    deploy,
    deployment_difference,
    own_containers,
    states_of,
    volumes_of,
)
from systemmanager.operations.stack_health import ServiceState
from systemmanager.operations.stack_plans import deployment_plan, removal_plan, with_digests
from systemmanager.params import Branch, ComposeFile, EnvVars, RepoUrl, StackName
from systemmanager.plan import Plan
from systemmanager.ports import Page, Result
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
    ok: bool
    commit: str | None
    repo: str
    branch: str
    file: str
    services: list[ServiceState]
    volumes: list[str]


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
    states = await states_of(stacks, stack_name)
    last = own[-1]
    return StackStatus(
        stack=stack_name,
        ok=not any(one.problem for one in states),
        commit=last.commit or None,
        repo=last.repo,
        branch=last.branch,
        file=last.file,
        services=states,
        volumes=await volumes_of(stacks, stack_name),
    )


async def plan_deployment(
    stacks: Stacks,
    stack_name: StackName,
    repo_url: RepoUrl,
    branch: Branch = "main",
    compose_file: ComposeFile = "docker-compose.yml",
    env_vars: EnvVars = {},  # noqa: B006  as below
) -> Plan:
    """What `deploy_stack` would do."""
    wanted = await stacks.resolve(stack_name, repo_url, branch, compose_file, env_vars)
    return await _planned(stacks, wanted)


async def plan_update(stacks: Stacks, stack_name: StackName) -> Plan:
    """What `update_stack` would do."""
    kept = await _kept(stacks, stack_name)
    one = kept.source
    return await _planned(stacks, await stacks.resolve(stack_name, one.repo, one.branch, one.file, kept.given))


async def plan_removal(stacks: Stacks, stack_name: StackName, remove_volumes: bool = False) -> Plan:
    """What `remove_stack` would do."""
    own = await _deployed(stacks, stack_name)
    return removal_plan(stack_name, own, await volumes_of(stacks, stack_name), remove_volumes)


@operation(
    scope="stack:deploy",
    capability="stack:deploy",
    risk=Risk.CRITICAL,
    timeout=900,
    job="steps",
    roles={"repo": "repo_url"},
    open_world=True,
    plan=plan_deployment,
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
        return await deploy(stacks, wanted, env_vars)


@operation(
    scope="stack:deploy",
    capability="stack:deploy",
    risk=Risk.CRITICAL,
    timeout=900,
    job="steps",
    open_world=True,
    plan=plan_update,
)
async def update_stack(stacks: Stacks, stack_name: StackName) -> StackDeployment:
    """Deploy the newest commit of a stack's branch, with the variables that it was deployed with."""
    async with stacks.alone(stack_name):
        kept = await _kept(stacks, stack_name)
        one = kept.source
        wanted = await stacks.resolve(stack_name, one.repo, one.branch, one.file, kept.given)
        return await deploy(stacks, wanted, kept.given)


@operation(
    scope="stack:deploy", capability="stack:deploy", risk=Risk.CRITICAL, timeout=180, job="again", plan=plan_removal
)
async def remove_stack(stacks: Stacks, stack_name: StackName, remove_volumes: bool = False) -> StackRemoval:
    """Remove a stack's containers and networks; its volumes only with remove_volumes."""
    async with stacks.alone(stack_name):
        own = await _deployed(stacks, stack_name)
        before = await volumes_of(stacks, stack_name)
        await stacks.down(stack_name, remove_volumes)
        await stacks.forget(stack_name)
        after = await volumes_of(stacks, stack_name)
    return StackRemoval(
        stack=stack_name,
        containers=[one.name for one in own],
        volumes_removed=sorted(set(before) - set(after)),
        volumes_kept=after,
    )


# --- what is there ---------------------------------------------------------------------------------------------------


async def _deployed(stacks: Stacks, stack: str) -> list[Member]:
    if own := await own_containers(stacks, stack):
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


async def _planned(stacks: Stacks, wanted: Judged) -> Plan:
    own = await own_containers(stacks, wanted.source.stack)
    await check_names(stacks, wanted, own)
    found = await with_digests(stacks, await deployment_difference(stacks, wanted), wanted)
    return deployment_plan(found, own, wanted)
