"""Packages of a target: which updates wait, updating, installing. apt and dnf."""

import asyncio
from typing import Annotated

from pydantic import AfterValidator, Field

from systemmanager.errors import PrivilegeRequired
from systemmanager.operation import Risk, operation
from systemmanager.operations import package_parsers as parse
from systemmanager.operations.package_parsers import PackageChange
from systemmanager.operations.package_tools import PackageTool, package_tool
from systemmanager.params import PackageName
from systemmanager.plan import Change
from systemmanager.plan import Plan as Rehearsed
from systemmanager.ports import Page, Shell

SIMULATED = "Nothing was changed: auto_approve=true does it."


def _installs(name: str) -> str:
    if name.endswith("-") or (name.endswith("+") and not name.endswith("++")):
        raise ValueError("must not end with '-' or '+': apt would read that as an order to remove or to install")
    return name


ONLY_SHOWN = Rehearsed(changes=[], preconditions={}, no_inverse="Nothing would change.", notes=[SIMULATED])

InstallName = Annotated[PackageName, AfterValidator(_installs)]
AutoApprove = Annotated[bool, Field(description="true: do it; false: only show what would change.")]


class Updates(Page):
    tool: str
    security: int = Field(description="How many of them close security holes.")
    packages: list[PackageChange] = Field(description="Security updates first.")
    held_back: list[str] | None = None
    reboot_required: bool | None = None
    lists_from: str | None = Field(default=None, description="When the target last asked its package sources.")


class PackageWork(Page):
    tool: str
    applied: bool
    packages: list[PackageChange]
    held_back: list[str] | None = None
    reboot_required: bool | None = None
    restart_services: list[str] | None = Field(default=None, description="They still run the old code.")
    note: str | None = None


@operation(scope="system:read", capability="system:read", risk=Risk.LOW, timeout=120)
async def check_system_updates(shell: Shell) -> Updates:
    """Which package updates wait, which of them are for security, and whether a reboot is due. Changes nothing."""
    tool = await package_tool(shell)
    plan, traces = await asyncio.gather(tool.updates(), tool.traces())
    packages = parse.security_first(plan.changes)
    return Updates(
        tool=tool.name,
        total=len(packages),
        security=sum(bool(package.security) for package in packages),
        packages=packages,
        held_back=plan.held_back or None,
        reboot_required=traces.reboot,
        lists_from=traces.lists_from,
    )


async def plan_updates(shell: Shell, auto_approve: bool = True) -> Rehearsed:
    """What `update_system_packages` and `update_packages` would do."""
    return await _rehearsed(shell, None) if auto_approve else ONLY_SHOWN


async def plan_install(shell: Shell, package_name: str, auto_approve: bool = False) -> Rehearsed:
    """What `install_package` would do."""
    return await _rehearsed(shell, package_name) if auto_approve else ONLY_SHOWN


async def _rehearsed(shell: Shell, package: str | None) -> Rehearsed:
    """The package manager's own simulation, as a plan."""
    tool, notes = await package_tool(shell), list[str]()
    try:
        plan = await tool.plan(package)
    except PrivilegeRequired as error:
        if package is not None:
            raise
        plan, notes = await tool.updates(), [f"{error.message}: these are the updates that the target knows of."]
    packages = parse.security_first(plan.changes)
    if packages or package is None:
        notes.append("The package sources are asked again first: what is newer there by then comes, too.")
    if plan.held_back:
        notes.append(f"Held back: {', '.join(plan.held_back)}")
    return Rehearsed(
        changes=[
            Change(
                what=f"package {one.name}",
                field="security update" if one.security else None,
                before=one.old,
                after=one.new,
            )
            for one in packages
        ],
        preconditions={f"package {one.name}": f"{one.old or 'none'} -> {one.new or 'none'}" for one in packages},
        no_inverse="No tool here removes packages or installs older ones." if packages else "Nothing would change.",
        notes=notes or None,
    )


@operation(
    scope="system:admin",
    capability="system:admin",
    risk=Risk.CRITICAL,
    privileged=True,
    timeout=1800,
    open_world=True,
    plan=plan_updates,
    job="steps",
)
async def update_system_packages(shell: Shell, auto_approve: AutoApprove = False) -> PackageWork:
    """Update all packages of a machine."""
    tool = await package_tool(shell)
    return await (_applied(tool, None) if auto_approve else _simulated(tool, None))


@operation(
    scope="system:admin",
    capability="system:admin",
    risk=Risk.CRITICAL,
    privileged=True,
    timeout=1800,
    selection="required",
    open_world=True,
    plan=plan_updates,
    job="steps",
)
async def update_packages(shell: Shell) -> PackageWork:
    """Update all packages on several machines at once."""
    return await _applied(await package_tool(shell), None)


@operation(
    scope="system:admin",
    capability="system:admin",
    risk=Risk.CRITICAL,
    privileged=True,
    timeout=1800,
    open_world=True,
    plan=plan_install,
    job="steps",
)
async def install_package(shell: Shell, package_name: InstallName, auto_approve: AutoApprove = False) -> PackageWork:
    """Install one package, or bring it to its newest version."""
    tool = await package_tool(shell)
    return await (_applied(tool, package_name) if auto_approve else _simulated(tool, package_name))


async def _simulated(tool: PackageTool, package: str | None) -> PackageWork:
    plan = await tool.plan(package)
    packages = parse.security_first(plan.changes)
    return PackageWork(
        tool=tool.name,
        applied=False,
        total=len(packages),
        packages=packages,
        held_back=plan.held_back or None,
        note=SIMULATED if packages else "Nothing is to be done.",
    )


async def _applied(tool: PackageTool, package: str | None) -> PackageWork:
    """Do it, and say what is different afterwards: by the packages installed, not by what the tool printed.

    May be called again by the next process: what is remembered and detached is not done twice.
    """
    note = await tool.shell.remember("refreshed", tool.refresh)
    before = await tool.shell.remember("before", tool.installed)
    output = await tool.apply(package)
    changes = parse.changed(before, await tool.installed())
    if output.status != 0:
        error = parse.failure(tool.name, f"install {package}" if package else "update the packages", output)
        error.details = {**(error.details or {}), "changed_before_that": len(changes)}
        raise error
    traces = await tool.traces()
    restarts = await tool.restarts() if changes else None
    return PackageWork(
        tool=tool.name,
        applied=True,
        total=len(changes),
        packages=changes,
        reboot_required=traces.reboot,
        restart_services=restarts,
        note=note if changes or note else "Everything was up to date.",
    )
