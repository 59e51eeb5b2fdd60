"""What deploying, updating and removing a stack would do, found out by looking."""

import asyncio
from collections.abc import Mapping, Sequence

from systemmanager.operations.images import newest
from systemmanager.operations.stack_changes import Member, ServiceImage, StackDifference
from systemmanager.plan import Change, Inverse, Plan
from systemmanager.ports import Docker
from systemmanager.stacks import Judged

NOTHING = "Nothing would change."


async def with_digests(docker: Docker, found: StackDifference, wanted: Judged) -> StackDifference:
    """The difference, images that would be pulled with the digest that their registry has now."""

    async def one(image: ServiceImage) -> ServiceImage:
        service = wanted.config["services"][image.service]
        pulled = service.get("pull_policy") == "always" or not image.digest
        if service.get("build") or not pulled:
            return image
        name = image.image
        tagged = name if "@" in name or ":" in name.rpartition("/")[2] else f"{name}:latest"
        return image.model_copy(update={"digest": (await newest(docker, tagged))[0]})

    return found.model_copy(update={"images": await asyncio.gather(*map(one, found.images))})


def deployment_plan(found: StackDifference, own: Sequence[Member], wanted: Judged) -> Plan:
    """A deployment's difference as a plan."""
    changes = [*_changes(found, wanted)] if not found.nothing else []
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
    if kept := _volumes_kept(found, wanted):
        notes.append(f"Volumes that are mounted again: {', '.join(kept)[:1000]}.")
    if found.volumes_left:
        notes.append(f"Volumes that nothing uses then, but stay: {', '.join(found.volumes_left)[:1000]}.")
    if found.exempted:
        notes.append(f"Only exceptions of policy.yaml allow: {', '.join(found.exempted)[:1000]}.")
    if found.variables_unset:
        notes.append(f"Variables that nobody set, so that they are empty: {', '.join(found.variables_unset)[:1000]}.")
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


def _changes(found: StackDifference, wanted: Judged) -> list[Change]:
    fields = {one.service: ", ".join(one.fields)[:1000] for one in found.services_changed or ()}
    images = {one.service: _image(one, wanted) for one in found.images}
    return [
        *(Change(what=f"service {name}", after=images.get(name)) for name in found.services_added or ()),
        *(Change(what=f"service {name}", field=said, before="as it is", after=f"as in the commit, {images[name]}")
          for name, said in fields.items()),
        *(Change(what=f"service {name}", before="as it is") for name in found.services_removed or ()),
        *(Change(what=f"volume {name}", after="new") for name in found.volumes_added or ()),
        *(Change(what=f"network {name}", after="new") for name in found.networks_added or ()),
        *(Change(what=f"network {name}", before="as it is") for name in found.networks_removed or ()),
    ]  # fmt: skip


def _image(image: ServiceImage, wanted: Judged) -> str:
    built = wanted.config["services"][image.service].get("build")
    return f"{image.image}, {'built anew' if built else image.digest or 'what its registry has then'}"


def _volumes_kept(found: StackDifference, wanted: Judged) -> list[str]:
    """Volumes that are there, of services that are made or made anew."""
    made = {*(found.services_added or ()), *(one.service for one in found.services_changed or ())}
    mounts = [mount for name in made for mount in wanted.config["services"][name].get("volumes") or ()]
    sources = {mount.get("source") for mount in mounts if mount.get("type") == "volume"}
    names = {
        str((one or {}).get("name") or key)
        for key, one in (wanted.config.get("volumes") or {}).items()
        if key in sources
    }
    return sorted(names - {*(found.volumes_added or ())})


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
