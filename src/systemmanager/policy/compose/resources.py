"""Volumes, networks, configs and secrets of a resolved configuration."""

from collections.abc import Iterator, Mapping
from typing import Any

from systemmanager.policy.compose.findings import (
    Check,
    Finding,
    Location,
    anything,
    checked,
    each,
    fields,
    is_set,
    labels,
)

_NETWORK_OPTIONS = {"com.docker.network.driver.mtu", "com.docker.network.bridge.enable_icc"}


def resources(config: Mapping[str, Any], stack: str) -> Iterator[Finding]:
    """What the stack has beside its services that no stack may have."""
    for kind, checks in (("volumes", _VOLUME), ("networks", _NETWORK), ("configs", _FILE), ("secrets", _FILE)):
        for one, at in each(config.get(kind) or {}, (kind,)):
            yield from checked(one or {}, at, {**checks, "external": anything})
            if is_set((one or {}).get("external")):
                name = str(one.get("name") or at[1])
                yield Finding("external", name, (*at, "external"), f"uses {name}, which is not of this stack")
            if kind in ("volumes", "networks"):
                yield from _named(one or {}, at, stack)


def _named(one: Mapping[str, Any], at: Location, stack: str) -> Iterator[Finding]:
    name = str(one.get("name") or "")
    if not is_set(one.get("external")) and name != f"{stack}_{at[1]}":
        yield Finding("name", name, (*at, "name"), f"is called {name}, and so may be another stack's")


def _volume_driver(value: Any, at: Location) -> Iterator[Finding]:
    if is_set(value) and value != "local":
        yield Finding("volume_driver", str(value), at, f"makes volumes with the plugin {value}")


def _volume_options(value: Any, at: Location) -> Iterator[Finding]:
    options = {str(name): str(one) for name, one in (value or {}).items()}
    if options and (options.get("type") != "tmpfs" or "bind" in options.get("o", "") or "/" in options.get("o", "")):
        yield Finding("driver_opts", options.get("device", ""), at, "mounts what it names, folders of the host too")


def _network_driver(value: Any, at: Location) -> Iterator[Finding]:
    if is_set(value) and value not in ("bridge", "default"):
        yield Finding("network_driver", str(value), at, f"makes a network with the driver {value}")


def _network_options(value: Any, at: Location) -> Iterator[Finding]:
    for name in value or {}:
        if name not in _NETWORK_OPTIONS:
            yield Finding("network_options", str(name), (*at, name), "changes the host's own network")


def _file(value: Any, at: Location) -> Iterator[Finding]:
    if is_set(value):
        yield Finding("file", str(value), at, f"mounts {value} of the host; files of the checkout are copied in")


_VOLUME: dict[str, Check] = {
    **fields(anything, ("name",)),
    "labels": labels,
    "driver": _volume_driver,
    "driver_opts": _volume_options,
}
_NETWORK: dict[str, Check] = {
    **fields(anything, ("name", "ipam", "internal", "attachable", "enable_ipv6", "enable_ipv4")),
    "labels": labels,
    "driver": _network_driver,
    "driver_opts": _network_options,
}
_FILE: dict[str, Check] = {**fields(anything, ("name", "content", "environment")), "labels": labels, "file": _file}
