"""Images and networks of a Docker Engine."""

import asyncio

from pydantic import Field

from systemmanager.errors import GatewayError, NotFound
from systemmanager.operation import Risk, operation
from systemmanager.operations.containers import container_name, moment
from systemmanager.paging import page
from systemmanager.params import Cursor, ImageName, ImageTag, Limit
from systemmanager.plan import Change, Plan
from systemmanager.ports import Docker, Json, Page, Result


class ImageRow(Result):
    tags: list[str] | None = None
    id: str
    size: int = Field(description="Bytes.")
    created: str | None = None
    containers: list[str] | None = Field(default=None, description="That are made from it.")


class ImageList(Page):
    images: list[ImageRow] = Field(description="Newest first.")


def short_id(id: str) -> str:
    return id.removeprefix("sha256:")[:12]


@operation(scope="container:read", capability="container:read", risk=Risk.LOW)
async def list_docker_images(docker: Docker, limit: Limit = 200, cursor: Cursor | None = None) -> ImageList:
    """Images on the engine, with size and the containers made from them. Those without tags are leftovers."""
    images, containers = await asyncio.gather(docker.images(), docker.containers())
    users: dict[str, list[str]] = {}
    for row in containers:
        users.setdefault(row["ImageID"], []).append(container_name(row))
    ranked = sorted(images, key=lambda image: (-image["Created"], image["Id"]))
    shown, marks = page(ranked, limit, cursor)
    rows = [
        ImageRow(
            tags=[tag for tag in image.get("RepoTags") or [] if "<none>" not in tag] or None,
            id=short_id(image["Id"]),
            size=image["Size"],
            created=moment(image["Created"]) if image["Created"] > 0 else None,
            containers=sorted(users.get(image["Id"], [])) or None,
        )
        for image in shown
    ]
    return ImageList(images=rows, **marks)


class NetworkRow(Result):
    name: str
    id: str
    driver: str
    scope: str
    subnets: list[str] | None = None
    internal: bool | None = None
    containers: list[str] | None = None


class NetworkList(Page):
    networks: list[NetworkRow]


@operation(scope="container:read", capability="container:read", risk=Risk.LOW)
async def get_docker_networks(docker: Docker, limit: Limit = 200, cursor: Cursor | None = None) -> NetworkList:
    """Docker networks with driver, subnets and the containers attached to them."""
    networks, containers = await asyncio.gather(docker.networks(), docker.containers())
    attached: dict[str, list[str]] = {}
    for row in containers:
        for name in (row.get("NetworkSettings") or {}).get("Networks") or {}:
            attached.setdefault(name, []).append(container_name(row))
    shown, marks = page(sorted(networks, key=lambda network: network["Name"]), limit, cursor)
    rows = [_network_row(network, attached.get(network["Name"], [])) for network in shown]
    return NetworkList(networks=rows, **marks)


def _network_row(network: Json, attached: list[str]) -> NetworkRow:
    subnets = [pool["Subnet"] for pool in (network.get("IPAM") or {}).get("Config") or [] if pool.get("Subnet")]
    return NetworkRow(
        name=network["Name"],
        id=network["Id"][:12],
        driver=network["Driver"],
        scope=network["Scope"],
        subnets=subnets or None,
        internal=network.get("Internal") or None,
        containers=sorted(attached) or None,
    )


class PulledImage(Result):
    image: str
    id: str
    digest: str | None = None
    size: int = Field(description="Bytes.")
    updated: bool = Field(description="It is another one than the engine had under this name.")


WITHIN = 15.0
"""Seconds that a registry may take to say which image a name means."""


async def newest(docker: Docker, reference: str) -> tuple[str | None, str | None]:
    """The digest that the registry has under a name now, or why that is not known."""
    try:
        async with asyncio.timeout(WITHIN):
            return await docker.digest_now(reference), None
    except TimeoutError:
        return None, f"The registry did not say within {WITHIN:g} s what {reference} is now."
    except GatewayError as error:
        return None, f"What {reference} is now in its registry is not known ({error.code})."


async def image_or_none(docker: Docker, name: str) -> Json | None:
    try:
        return await docker.inspect_image(name)
    except NotFound:
        return None


def image_change(what: str, before: Json | None, now: str | None) -> list[Change]:
    """An image that becomes the one of this digest (None: whatever its registry has)."""
    digests = [digest.partition("@")[2] for digest in (before or {}).get("RepoDigests") or []]
    if now is not None and now in digests:
        return []
    old = digests[0] if digests else f"image {short_id(before['Id'])}" if before else None
    return [Change(what=what, field="digest", before=old, after=now or "what its registry has then")]


async def plan_pull(docker: Docker, image_name: ImageName, tag: ImageTag = "latest") -> Plan:
    """What `pull_docker_image` would do."""
    reference = image_name if "@" in image_name else f"{image_name}:{tag}"
    before, (now, unknown) = await asyncio.gather(image_or_none(docker, reference), newest(docker, reference))
    changes = image_change(f"image {reference}", before, now)
    why = "No tool here removes images."
    if before is not None:
        why = f"The image of now stays on the engine as {short_id(before['Id'])}, without its name."
    return Plan(
        changes=changes,
        preconditions={"image": before["Id"] if before else None, "in the registry": now},
        no_inverse=why if changes else "Nothing would change.",
        notes=[unknown] if unknown else None,
    )


@operation(
    scope="docker:admin",
    capability="docker:admin",
    risk=Risk.CRITICAL,
    job="again",
    timeout=600,
    roles={"image": "image_name"},
    open_world=True,
    plan=plan_pull,
)
async def pull_docker_image(docker: Docker, image_name: ImageName, tag: ImageTag = "latest") -> PulledImage:
    """Pull an image from its registry onto the engine. Containers keep the image they have until they are updated."""
    reference = image_name if "@" in image_name else f"{image_name}:{tag}"
    try:
        before = (await docker.inspect_image(reference))["Id"]
    except NotFound:
        before = None
    image = await docker.pull(image_name, tag)
    return PulledImage(
        image=reference,
        id=short_id(image["Id"]),
        digest=digest_of(image, image_name),
        size=image["Size"],
        updated=image["Id"] != before,
    )


def digest_of(image: Json, name: str) -> str | None:
    """The digest under which the registry of `name` has the image."""
    digests = [digest.partition("@") for digest in image.get("RepoDigests") or []]
    plain = name.partition("@")[0].removeprefix("docker.io/").removeprefix("library/")
    return next(
        (digest for repository, _, digest in digests if repository == plain), digests[0][2] if digests else None
    )
