"""One service of a resolved configuration."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from systemmanager.policy.compose.binds import mounted
from systemmanager.policy.compose.builds import builds
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
    never,
    one_of,
)
from systemmanager.references import image_matches

CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
        "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
    }
)  # fmt: skip
"""What an engine gives every container anyway (Docker's default list)."""

_HARMLESS = fields(
    anything,
    (
        "attach", "cap_drop", "command", "container_name", "cpu_count", "cpu_percent", "cpu_period", "cpu_quota",
        "cpu_shares", "cpus", "cpuset", "depends_on", "dns", "dns_opt", "dns_search", "domainname", "entrypoint",
        "environment", "expose", "extra_hosts", "group_add", "healthcheck", "hostname", "init", "links", "mac_address",
        "mem_limit", "mem_reservation", "mem_swappiness", "memswap_limit", "networks", "pids_limit", "platform",
        "ports", "profiles", "pull_policy", "read_only", "restart", "scale", "secrets", "configs", "shm_size",
        "stdin_open", "stop_grace_period", "stop_signal", "tmpfs", "tty", "ulimits", "user", "working_dir",
    ),
)  # fmt: skip

_LOGGING = {"json-file", "local", "none"}
_LOG_OPTIONS = {"max-size", "max-file", "max-buffer-size", "compress", "labels", "labels-regex", "env", "tag", "mode"}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a service is judged by beside itself."""

    stack: str
    checkout: str
    roots: tuple[str, ...]
    sockets: tuple[str, ...]
    images: tuple[str, ...] | None


def service(config: Any, at: Location, around: Surroundings) -> Iterator[Finding]:
    """What one service has that no stack may have."""
    checks: dict[str, Check] = {
        **_FIXED,
        "volumes": lambda value, place: _volumes(value, place, around),
        "image": lambda value, place: _image(value, place, around.images),
        "build": lambda value, place: builds(value, place, around.checkout, around.images),
    }
    yield from checked(config, at, checks)


def _image(value: Any, at: Location, allowed: tuple[str, ...] | None) -> Iterator[Finding]:
    image = str(value or "")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,400}", image):
        yield Finding("image", image, at, "names no image")
    elif allowed is not None and not any(image_matches(image, "", pattern) for pattern in allowed):
        yield Finding("image", image, at, f"{image} is not among constraints.images of the target")


def _volumes(value: Any, at: Location, around: Surroundings) -> Iterator[Finding]:
    for mount, place in each(value, at):
        kind = mount.get("type") if isinstance(mount, Mapping) else None
        if kind == "bind":
            yield from mounted(
                str(mount.get("source", "")), (*place, "source"), around.roots, around.sockets, around.checkout
            )
            yield from checked(mount.get("bind") or {}, (*place, "bind"), _BIND)
        elif kind == "volume":
            yield from checked(mount.get("volume") or {}, (*place, "volume"), fields(anything, ("nocopy", "subpath")))
        elif kind != "tmpfs":
            yield Finding("volume_type", str(kind), place, f"mounts something of the type {kind}")


_BIND: dict[str, Check] = {
    "create_host_path": anything,
    "propagation": one_of("propagation", "lets mounts reach the host", "private", "rprivate", "slave", "rslave"),
    "selinux": one_of("selinux", "changes the labels of the host's files", "z"),
}


def _cap_add(value: Any, at: Location) -> Iterator[Finding]:
    for name, place in each(value, at):
        plain = str(name).upper().removeprefix("CAP_")
        if plain not in CAPABILITIES:
            yield Finding("cap_add", plain, place, f"adds the capability {plain}")


def _security(value: Any, at: Location) -> Iterator[Finding]:
    for option, place in each(value, at):
        plain = str(option).replace(":", "=", 1)
        if plain not in ("no-new-privileges", "no-new-privileges=true", "apparmor=docker-default", "seccomp=builtin"):
            yield Finding("security_opt", str(option), place, "weakens what confines the container")


def _sysctls(value: Any, at: Location) -> Iterator[Finding]:
    names = value if isinstance(value, Mapping) else {str(one).partition("=")[0]: one for one in value or ()}
    for name in names:
        if not re.fullmatch(r"net\.[a-z0-9_.]+", str(name)):
            yield Finding("sysctls", str(name), (*at, str(name)), f"sets {name}")


def _logging(value: Any, at: Location) -> Iterator[Finding]:
    if not is_set(value):
        return
    driver = str(value.get("driver") or "json-file")
    if driver not in _LOGGING:
        yield Finding("logging", driver, (*at, "driver"), f"lets the engine itself write to {driver}")
    for name in value.get("options") or {}:
        if name not in _LOG_OPTIONS:
            yield Finding("logging", str(name), (*at, "options", name), "is an option that the gateway does not judge")


def _storage(value: Any, at: Location) -> Iterator[Finding]:
    for name in value or {}:
        if name != "size":
            yield Finding("storage_opt", str(name), (*at, name), "is an option of the engine's storage")


def _score(value: Any, at: Location) -> Iterator[Finding]:
    if is_set(value) and int(value) < 0:
        yield Finding("oom_score_adj", "", at, "makes the kernel spare the container before the host's own programs")


def _deploy(value: Any, at: Location) -> Iterator[Finding]:
    yield from checked(value or {}, at, _DEPLOY)


def _resources(value: Any, at: Location) -> Iterator[Finding]:
    for name, place in (("limits", (*at, "limits")), ("reservations", (*at, "reservations"))):
        yield from checked((value or {}).get(name) or {}, place, _RESOURCES)


_DEVICES = never("devices", "gives the container devices of the host")
_RESOURCES = {**fields(anything, ("cpus", "memory", "pids")), "devices": _DEVICES}
_DEPLOY: dict[str, Check] = {
    **fields(anything, ("mode", "replicas", "update_config", "rollback_config", "restart_policy", "placement")),
    **fields(anything, ("endpoint_mode",)),
    "labels": labels,
    "resources": _resources,
}

_HOST = "shares a name space with the host, or with a container outside this stack"
_FIXED: dict[str, Check] = {
    **_HARMLESS,
    "annotations": never("annotations", "tells the container runtime what the gateway does not judge"),
    "blkio_config": never("blkio_config", "names devices of the host"),
    "cap_add": _cap_add,
    "cgroup": one_of("cgroup", _HOST, "private"),
    "cgroup_parent": never("cgroup_parent", "leaves the engine's own control group"),
    "cpu_rt_period": never("cpu_rt", "takes real-time scheduling"),
    "cpu_rt_runtime": never("cpu_rt", "takes real-time scheduling"),
    "credential_spec": never("credential_spec", "reads a file or key of the host"),
    "deploy": _deploy,
    "develop": never("develop", "copies files into the container while it runs"),
    "device_cgroup_rules": never("device_cgroup_rules", "opens devices of the host"),
    "devices": _DEVICES,
    "env_file": never("env_file", "should have been read by now"),
    "extends": never("extends", "should have been resolved by now"),
    "external_links": never("external_links", "reaches into other stacks"),
    "gpus": never("gpus", "gives the container devices of the host"),
    "ipc": one_of("ipc", _HOST, "private", "shareable", "none", prefix="service:"),
    "isolation": one_of("isolation", "is for Windows", "default"),
    "label_file": never("label_file", "should have been read by now"),
    "labels": labels,
    "logging": _logging,
    "network_mode": one_of("network_mode", _HOST, "none", "bridge", prefix="service:"),
    "oom_kill_disable": never("oom_kill_disable", "can take all memory of the host"),
    "oom_score_adj": _score,
    "pid": one_of("pid", _HOST, prefix="service:"),
    "post_start": never("hooks", "runs a command after the start, as any user"),
    "pre_stop": never("hooks", "runs a command before the stop, as any user"),
    "privileged": never("privileged", "gives the container the host"),
    "provider": never("provider", "makes Compose start a program of the gateway"),
    "runtime": one_of("runtime", "names another container runtime", "runc"),
    "security_opt": _security,
    "storage_opt": _storage,
    "sysctls": _sysctls,
    "use_api_socket": never("docker_socket", "gives the container the Docker Engine, and so the host"),
    "userns_mode": never("userns_mode", _HOST),
    "uts": never("uts", _HOST),
    "volumes_from": never("volumes_from", "takes the volumes of another container"),
}
