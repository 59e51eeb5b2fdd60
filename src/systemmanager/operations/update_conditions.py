"""What a container is looked at for before it is updated."""

import socket

from systemmanager.errors import EngineRefused
from systemmanager.operations.containers import container_name
from systemmanager.ports import Docker, Json


async def check(docker: Docker, found: Json, name: str) -> None:
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


async def platform_of(docker: Docker, image: Json | None) -> str | None:
    """The platform to pull for, where the container's is not the engine's own."""
    if image is None or image.get("Architecture") in ("", None, (await docker.version()).get("Arch")):
        return None
    return "/".join(filter(None, (image.get("Os"), image["Architecture"], image.get("Variant"))))


async def borrowed_by(docker: Docker, found: Json) -> set[str]:
    """Volumes that come from other containers, which the new container gets from them again."""
    lenders = [entry.partition(":")[0] for entry in found["HostConfig"].get("VolumesFrom") or []]
    mounts = [mount for lender in lenders for mount in (await docker.inspect(lender)).get("Mounts") or []]
    return {mount["Name"] for mount in mounts if mount.get("Name")}
