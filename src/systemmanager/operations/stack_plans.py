"""What deploying, updating and removing a stack would do, found out by looking."""

from collections.abc import Mapping, Sequence

from systemmanager.operations.stack_changes import Member, StackDifference
from systemmanager.plan import Change, Inverse, Plan
from systemmanager.stacks import Judged

NOTHING = "Nothing would change."


def deployment_plan(found: StackDifference, own: Sequence[Member], wanted: Judged) -> Plan:
    """A deployment's difference as a plan."""
    changes = [*_changes(found)] if not found.nothing else []
    if changes:
        commit = Change(what=f"stack {found.stack}", field="commit", before=found.previous_commit, after=found.commit)
        changes = [commit, *changes]
    inverse, reason = None, None
    if not changes:
        reason = NOTHING
    elif not own:
        inverse = Inverse(tool="remove_stack", arguments={"stack_name": found.stack})
    else:
        reason = "The branch leads to the new commit: put the old one back there, then update_stack."
    notes = ["If it does not become healthy, what runs now comes back by itself; volumes stay."] if changes else []
    if found.exempted:
        notes.append(f"Only exceptions of policy.yaml allow: {', '.join(found.exempted)[:1000]}.")
    return Plan(
        changes=changes,
        preconditions={
            **_standing(own),
            **_wanted(wanted),
            **{f"image {one.image}": one.digest for one in found.images},
        },
        inverse=inverse,
        no_inverse=reason,
        notes=notes or None,
    )


def _changes(found: StackDifference) -> list[Change]:
    fields = {one.service: ", ".join(one.fields)[:1000] for one in found.services_changed or ()}
    images = {one.service: one.image for one in found.images}
    return [
        *(Change(what=f"service {name}", after=images.get(name)) for name in found.services_added or ()),
        *(Change(what=f"service {name}", field=said, before="as it is", after="as in the commit")
          for name, said in fields.items()),
        *(Change(what=f"service {name}", before="as it is") for name in found.services_removed or ()),
        *(Change(what=f"volume {name}", after="new") for name in found.volumes_added or ()),
        *(Change(what=f"network {name}", after="new") for name in found.networks_added or ()),
        *(Change(what=f"network {name}", before="as it is") for name in found.networks_removed or ()),
    ]  # fmt: skip


def removal_plan(stack: str, own: Sequence[Member], volumes: Sequence[str], remove_volumes: bool) -> Plan:
    """What `remove_stack` would do."""
    changes = [Change(what=f"container {one.name}", before=one.state) for one in own]
    changes += [Change(what=f"volume {name}", before="as it is") for name in volumes if remove_volumes]
    kept = [] if remove_volumes or not volumes else [f"These volumes stay: {', '.join(volumes)[:1000]}."]
    return Plan(
        changes=changes,
        preconditions={**_standing(own), "volumes": ", ".join(volumes) if remove_volumes else None},
        no_inverse="What is in its volumes would be gone." if remove_volumes and volumes else
        "deploy_stack brings it back, with its variables and from what is then in its branch.",
        notes=kept or None,
    )  # fmt: skip


def _standing(own: Sequence[Member]) -> Mapping[str, str | None]:
    """What tells the stack's containers from others."""
    return {f"container {one.name}": f"{one.id[:12]} {one.commit}" for one in own}


def _wanted(wanted: Judged) -> Mapping[str, str | None]:
    return {
        f"{wanted.source.repo} {wanted.source.branch}": wanted.commit,
        **{f"service {name}": digest for name, digest in wanted.digests.items()},
    }
