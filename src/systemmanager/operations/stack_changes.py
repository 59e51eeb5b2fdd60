"""What a deployment changes: pure comparisons of a stack as it is with the stack as it will be."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from systemmanager.operations.containers import container_name
from systemmanager.ports import Json, Result
from systemmanager.stacks import LABEL, Judged

PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"


class ChangedService(Result):
    service: str
    fields: list[str]


class ServiceImage(Result):
    service: str
    image: str
    digest: str | None = None


class StackDifference(Result):
    """What a deployment does to the target. Lists of what there is none of are left out."""

    stack: str
    commit: str
    previous_commit: str | None = None
    services_added: list[str] | None = None
    services_changed: list[ChangedService] | None = None
    services_removed: list[str] | None = None
    images: list[ServiceImage]
    volumes_added: list[str] | None = None
    volumes_left: list[str] | None = None
    networks_added: list[str] | None = None
    networks_removed: list[str] | None = None
    exempted: list[str] | None = None
    variables_unset: list[str] | None = None

    @property
    def nothing(self) -> bool:
        services = (self.services_added, self.services_changed, self.services_removed)
        return not any((*services, self.volumes_added, self.networks_added, self.networks_removed))

    def of_images(self, digests: Mapping[str, str | None]) -> Self:
        """The same with the images' digests by name."""
        images = [one.model_copy(update={"digest": digests.get(one.image)}) for one in self.images]
        return self.model_copy(update={"images": images})


@dataclass(frozen=True, slots=True)
class Member:
    """One container of a stack, from the engine's list; what its labels say is empty where they say nothing."""

    id: str
    name: str
    service: str
    stack: str
    repo: str
    branch: str
    file: str
    commit: str
    digest: str
    image: str
    image_id: str
    state: str
    created: int


def members(rows: Iterable[Json], stack: str | None = None) -> list[Member]:
    """The containers of one Compose project, or of all stacks of any gateway, the oldest first."""
    found = []
    for row in rows:
        labels: Mapping[str, str] = row.get("Labels") or {}
        project = _word(labels.get(PROJECT))
        if project and (project == stack or (stack is None and labels.get(LABEL) == project)):
            own = (_word(labels.get(f"{LABEL}.{name}")) for name in ("repo", "branch", "file", "commit", "digest"))
            repo, branch, file, commit, digest = own
            found.append(
                Member(
                    row["Id"], container_name(row), _word(labels.get(SERVICE)), _word(labels.get(LABEL)), repo, branch,
                    file, commit, digest, row["Image"], row.get("ImageID", ""), row["State"], row["Created"],
                )
            )  # fmt: skip
    return sorted(found, key=lambda one: (one.created, one.name))


def _word(label: str | None) -> str:
    """A label as gateways and Compose write it; whoever made the image may have written anything there."""
    return label if label and re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.+:/@~#\[\]-]{0,500}", label) else ""


def unchanged(running: Sequence[Member], wanted: Judged) -> dict[str, str]:
    """Services whose containers are as they should be, with the commit that they are from."""
    found: dict[str, str] = {}
    for one in running:
        if one.digest and wanted.digests.get(one.service) == one.digest:
            found[one.service] = one.commit
    return {name: commit for name, commit in found.items() if commit}


def difference(
    running: Sequence[Member],
    before: Mapping[str, Any] | None,
    wanted: Judged,
    images: Mapping[str, str | None],
    kept: Collection[str] = (),
) -> StackDifference:
    """What deploying `wanted` would change. `before` is the configuration that runs, where it is known; `images` are
    the digests that the engine has, by name; `kept` are the stack's volumes, also of when it was removed."""
    services: Mapping[str, Any] = wanted.config["services"]
    there = {one.service for one in running}
    same = unchanged(running, wanted)
    old = (before or {}).get("services") or {}
    changed = [
        ChangedService(service=name, fields=sorted(_fields(old.get(name), one)))
        for name, one in sorted(services.items())
        if name in there and (name not in same or one.get("build"))
    ]
    volumes, networks = (_names(wanted.config, kind) for kind in ("volumes", "networks"))
    had_volumes, had_networks = (_names(before or {}, kind) for kind in ("volumes", "networks"))
    return StackDifference(
        stack=wanted.source.stack,
        commit=wanted.commit,
        previous_commit=running[-1].commit or None if running else None,
        services_added=sorted(set(services) - there) or None,
        services_changed=changed or None,
        services_removed=sorted(there - set(services)) or None,
        images=[
            ServiceImage(service=name, image=_image(wanted, name, one), digest=images.get(_image(wanted, name, one)))
            for name, one in sorted(services.items())
        ],
        volumes_added=sorted(volumes - had_volumes - {*kept}) or None,
        volumes_left=sorted(had_volumes - volumes) or None,
        networks_added=sorted(networks - had_networks) or None,
        networks_removed=sorted(had_networks - networks) or None,
        exempted=list(wanted.exempted) or None,
        variables_unset=list(wanted.unset) or None,
    )


def image_of(wanted: Judged, service: str) -> str:
    """The image of a service; one that is built without a name gets Compose's."""
    return _image(wanted, service, wanted.config["services"][service])


def _image(wanted: Judged, service: str, one: Mapping[str, Any]) -> str:
    return str(one.get("image") or f"{wanted.source.stack}-{service}")


def _names(config: Mapping[str, Any], kind: str) -> set[str]:
    return {str((one or {}).get("name") or key) for key, one in (config.get(kind) or {}).items()}


def _fields(old: Any, new: Mapping[str, Any]) -> Iterator[str]:
    """Which fields differ, two levels deep; without the old ones that can't be said."""
    if new.get("build"):
        yield "build"
    if not isinstance(old, Mapping):
        yield "configuration"
        return
    for name in {*old, *new} - {"build"}:
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from (_field(name, key) for key in {*was, *now} if was.get(key) != now.get(key))
        else:
            yield name


def _field(name: str, key: str) -> str:
    """Names of variables and labels are the repository's: what is no plain word is not told."""
    return f"{name}.{key}" if re.fullmatch(r"[A-Za-z0-9_./-]{1,80}", key) else f"{name}.*"
