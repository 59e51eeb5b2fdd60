"""What a container has to be created with, to be again what it is, on a newer image. Pure: inspections in, bodies out.

The engine keeps no record of what a container was asked to be: its inspection mixes the image's defaults in. What
equals the image's default is left to the new image; the rest is carried over.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from systemmanager.errors import EngineRefused
from systemmanager.ports import Json

_INHERITED = ("User", "WorkingDir", "StopSignal", "Healthcheck", "Shell", "OnBuild", "ArgsEscaped")
_ENDPOINT = ("IPAMConfig", "Links", "DriverOpts", "GwPriority")


@dataclass(frozen=True, slots=True)
class Recreation:
    """`body` for `POST /containers/create`; then, before the start, networks to connect and one to leave, if any."""

    body: Json
    connect: dict[str, Json]
    leave: str | None = None


def reference_of(found: Json) -> tuple[str, str]:
    """Name and tag of the image that a container was made from. Raises `EngineRefused` where there is no such name."""
    given = str(found["Config"]["Image"])
    name = str(found["Name"]).lstrip("/")
    hexadecimal = re.fullmatch(r"(sha256:)?[0-9a-f]{12,64}", given)
    if hexadecimal and str(found["Image"]).removeprefix("sha256:").startswith(given.removeprefix("sha256:")):
        raise EngineRefused(
            f"{name!r} was made from an image id, not from a name",
            hint="Nothing can be newer; recreate it from a name.",
        )
    if "@" in given:
        raise EngineRefused(
            f"{name!r} is pinned to a digest: {given}",
            hint="Nothing can be newer; recreate it with the digest you want.",
        )
    if not given:
        raise EngineRefused(f"{name!r} does not say which image it was made from")
    head, colon, tag = given.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (given, "latest")


def recreation(found: Json, image: Json | None, reference: str, borrowed: Collection[str] = ()) -> Recreation:
    """How to make `found` again from `reference`.

    `image` is the inspection of the image that it was made from; without it every setting is carried over as the
    container's own. `borrowed` are volumes that it has from other containers (`--volumes-from`).
    """
    defaults = (image or {}).get("Config") or {}
    config = _config(found, defaults) | {"Image": reference}
    host = dict(found["HostConfig"])
    _keep_volumes(found, host, borrowed)
    mode = str(host.get("NetworkMode") or "default")
    if mode.startswith("container:"):
        for name in ("Hostname", "Domainname", "ExposedPorts", "MacAddress"):
            config.pop(name, None)
    if host.get("UTSMode") == "host":
        config.pop("Hostname", None)
    primary, endpoints = _networks(found, mode)
    first = endpoints.pop(primary, None)
    body: Json = {**config, "HostConfig": host}
    if first is not None:
        body["NetworkingConfig"] = {"EndpointsConfig": {primary: first}}
    joins = not mode.startswith(("container:", "host", "none")) and not config.get("NetworkDisabled")
    return Recreation(body, endpoints, leave=primary if joins and first is None else None)


def _config(found: Json, defaults: Json) -> Json:
    config = {name: value for name, value in found["Config"].items() if value is not None}
    for name in _INHERITED:
        if name in config and config[name] == defaults.get(name):
            del config[name]
    if config.get("Hostname") == found["Id"][:12]:
        del config["Hostname"]
    config["Env"] = [entry for entry in config.get("Env", []) if entry not in (defaults.get("Env") or [])]
    labels = defaults.get("Labels") or {}
    config["Labels"] = {name: value for name, value in config.get("Labels", {}).items() if labels.get(name) != value}
    volumes = defaults.get("Volumes") or {}
    config["Volumes"] = {path: {} for path in config.get("Volumes", {}) if path not in volumes}
    exposed = defaults.get("ExposedPorts") or {}
    bound = found["HostConfig"].get("PortBindings") or {}
    own: Json = {port: {} for port in config.get("ExposedPorts", {}) if port not in exposed}
    config["ExposedPorts"] = own | {port: {} for port in bound}
    _command(config, defaults)
    return config


def _command(config: Json, defaults: Json) -> None:
    """The image's command is inherited only with the image's own entry point: an entry point given resets it."""
    entry, command = config.pop("Entrypoint", None), config.pop("Cmd", None)
    same_entry = (entry or []) == (defaults.get("Entrypoint") or [])
    same_command = (command or []) == (defaults.get("Cmd") or [])
    if same_entry and same_command:
        return
    if not same_entry or not command:
        config["Entrypoint"] = entry or []
    config["Cmd"] = command or []


def _keep_volumes(found: Json, host: Json, borrowed: Collection[str]) -> None:
    """Volumes that the engine named by itself are named in the new container, so that it has the same data."""
    named = {mount["Destination"]: mount for mount in found.get("Mounts") or [] if mount.get("Type") == "volume"}
    mounts = [dict(mount) for mount in host.get("Mounts") or []]
    for mount in mounts:
        if mount.get("Type") == "volume" and not mount.get("Source") and mount["Target"] in named:
            mount["Source"] = named[mount["Target"]]["Name"]
    binds = list(host.get("Binds") or [])
    taken = {bind.split(":")[1] for bind in binds if ":" in bind} | {mount["Target"] for mount in mounts}
    for path, mount in named.items():
        if path not in taken and mount["Name"] not in borrowed:
            mode = mount.get("Mode") or ("" if mount.get("RW", True) else "ro")
            binds.append(f"{mount['Name']}:{path}{':' + mode if mode else ''}")
    host["Binds"] = binds or None
    if mounts:
        host["Mounts"] = mounts


def _networks(found: Json, mode: str) -> tuple[str, dict[str, Json]]:
    """The network that the container is created on, and the endpoint in each network that it is in."""
    networks: dict[str, Json] = (found.get("NetworkSettings") or {}).get("Networks") or {}
    if mode.startswith("container:") or mode in ("host", "none"):
        return mode, {}
    primary = "bridge" if mode == "default" else mode
    for name, endpoint in networks.items():
        if endpoint.get("NetworkID") == mode:
            primary = name
    own = str(found["Config"].get("MacAddress") or "")
    return primary, {
        name: dict(_endpoint(endpoint, found["Id"], own if name == primary else ""))
        for name, endpoint in networks.items()
        if name not in ("host", "none")
    }


def _endpoint(endpoint: Json, id: str, mac: str) -> Iterator[tuple[str, Any]]:
    """What of an endpoint was asked for; the rest is what the engine gave."""
    for name in _ENDPOINT:
        if endpoint.get(name):
            yield name, endpoint[name]
    if aliases := [alias for alias in endpoint.get("Aliases") or [] if alias != id[:12]]:
        yield "Aliases", aliases
    shown = str(endpoint.get("MacAddress") or "")
    if mac or (shown and not _derived(shown, str(endpoint.get("IPAddress") or ""))):
        yield "MacAddress", mac or shown


def _derived(mac: str, address: str) -> bool:
    """Whether the engine made this hardware address from the IPv4 address: then it must not outlive it."""
    parts = address.split(".")
    return len(parts) == 4 and mac.lower() == "02:42:" + ":".join(f"{int(part):02x}" for part in parts)
