"""A small world of policy questions: each as plain values for the reference, and as the Request that the gate gets."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

import systemmanager.operations  # noqa: F401  fills the catalogue
from systemmanager.operation import CATALOGUE, Access, Operation, Risk
from systemmanager.request import Freeze, Grant, Load, Principal, Request
from systemmanager.stacks import StackRules
from systemmanager.target import Target
from tests.support import target

SCOPES = (
    "system:read",
    "system:admin",
    "container:read",
    "container:write",
    "network:diag",
    "service:write",
    "file:read",
)

QUESTIONS: dict[str, list[Any]] = {
    "tool": ["get_system_status", "manage_service", "health_check", "explain_access"],
    "kind": ["local", "ssh", "docker", "http"],
    "port": ["Shell", "Files", "Facts", "Network", "Docker", "Probe", "Http", "Fleet"],
    "scopes": [
        ["system:read"], ["system:admin"], ["container:write"], ["network:diag"], ["file:read", "system:read"], [],
    ],
    "capabilities": [["system:read"], ["container:write"], ["container:read", "system:admin"], []],
    "offers": [[], ["system:read"], ["container:write"], ["container:read"], list(SCOPES)],
    "grants": [[], [["system:read"]], [["network:diag"], ["file:read"]], [list(SCOPES)], [[]], [["container:write"]]],
    "risk": ["low", "moderate", "high", "critical"],
    "fault": [None, None, None, "its key is missing"],
    "privileged": [False, True],
    "root": [False, True],
    "sudo_policy": ["none", "limited", "full"],
    "path": [None, "/var/log", "/var/log/x", "/var/logs", "/var/log/../x", "/etc/shadow", "/"],
    "paths": [["/var/log"], [], ["/"], ["/etc", "/var/log/"], ["/var/log/x"]],
    "unit": [None, "nginx", "nginx.service", "nginx.socket", "nginx-evil", "sshd"],
    "units": [None, [], ["nginx"], ["nginx*"], ["*.socket"], ["ssh?", "x"]],
    "host": [
        None, "8.8.8.8", "10.0.0.5", "192.168.1.1", "100.64.0.7", "127.0.0.1", "169.254.169.254", "::1",
        "::ffff:10.0.0.5", "2001:4860:4860::8888", "example.com", "db.home.lab", "metadata.google.internal",
    ],
    "hosts": [
        None, [], ["*"], ["10.0.0.0/8"], ["10.0.0.5"], ["127.0.0.0/8"], ["169.254.169.254"], ["8.8.8.8"], ["::1"],
        ["0.0.0.0/0"], ["*.home.lab"], ["example.com"], ["metadata.google.internal"], ["*", "10.0.0.0/8"],
        ["*.com", "::1"],
    ],
    "asked_ports": [[], [443], [22], [443, 22]],
    "ports": [None, [], [443], [22, 443]],
    "neighbours": [[], ["10.0.0.5"], ["192.168.1.1", "127.0.0.1"]],
    "repo": [
        None, "https://github.com/a/b", "https://GitHub.com/a/b.git", "git@github.com:a/b", "https://evil.example/a",
        "https://a:b@github.com/a", "https://github.com@evil.example/a", "file:///srv/a", "ext::sh -c id",
        "EXT::github.com/a", "ssh://-oProxyCommand=id/a", "https://10.0.0.5/a", "https://github.com/a?b",
        "https://github.com/../a", "git://github.com/a", "http://github.com/a", "https://0x8080808/a",
    ],
    "repo_hosts": [[], ["github.com"], ["*"], ["10.0.0.0/8"], ["*.com"], ["*.example"]],
    "image": [None, "nginx", "library/nginx", "docker.io/library/nginx", "evil/nginx",
              "registry.lan/team/app", "redis"],
    "tag": ["latest", "1.27"],
    "images": [
        None, [], ["nginx"], ["nginx:1.27"], ["registry.lan/team/*"], ["library/nginx"], ["redis", "nginx:latest"],
    ],
    "frozen": [[], [], [], ["all"], ["writes"], ["egress"], ["target"]],
    "reaches_out": [False, True],
    "running": [0, 0, 10, 21, 22, 110],
    "concurrency": [1, 2, 10],
    "recent": [0, 0, 4, 5, 10, 20, 99, 100],
    "approval": [False, True],
    "demanded": [False, False, True],
    "tainted": [False, False, True],
    "approvers": [0, 1, 2],
    "dual": [False, True],
    "own": [False, True],
}  # fmt: skip

PLAIN: dict[str, Any] = {
    "tool": "get_system_status", "kind": "local", "port": "Shell", "scopes": ["system:read"],
    "capabilities": ["system:read"], "offers": list(SCOPES), "grants": [list(SCOPES)], "risk": "low", "fault": None,
    "privileged": False, "root": False, "sudo_policy": "none", "path": None, "paths": ["/var/log"], "unit": None,
    "units": None, "host": None, "hosts": None, "asked_ports": [], "ports": None, "neighbours": [],
    "repo": None, "repo_hosts": [], "image": None,
    "tag": "latest", "images": None, "frozen": [], "running": 0, "concurrency": 10, "recent": 0, "approval": False,
    "demanded": False, "tainted": False, "approvers": 0, "dual": False,
    "own": False, "reaches_out": False,
}  # fmt: skip
"""A question that nothing is against."""

ROLES = {
    "path": "path",
    "unit": "unit",
    "host": "host",
    "port": "ports",
    "image": "image",
    "tag": "tag",
    "repo": "repo",
}


def some(chance: random.Random, changes: int) -> dict[str, Any]:
    """The plain question with some of its values changed: most random questions would be denied for ten reasons."""
    changed = chance.sample(list(QUESTIONS), changes)
    return {**PLAIN, **{name: chance.choice(QUESTIONS[name]) for name in changed}}


def asked(one: dict[str, Any]) -> Request:
    """The question as the gate gets it."""
    access = Access(
        tuple(one["scopes"]), tuple(one["capabilities"]), Risk(one["risk"]), one["approval"], one["privileged"]
    )
    arguments = {name: one[name] for name in ("path", "unit", "host", "image", "tag", "repo")} | {
        "ports": one["asked_ports"]
    }
    grants = tuple(Grant(frozenset(held)) for held in one["grants"])
    return Request(
        "call",
        Principal("mallory", "token", grants, "test"),
        _operation(one["tool"], one["port"], one["reaches_out"]),
        access,
        arguments,
        _target(one["kind"], *(_frozen_list(one[name]) for name in _LIMITS)),
        fault=one["fault"],
        granted=grants,
        load=Load({access.risk: one["recent"]}, one["running"]),
        root=one["root"],
        neighbours=frozenset(one["neighbours"]),
        freeze=Freeze("all" in one["frozen"], "writes" in one["frozen"], "egress" in one["frozen"], _here(one)),
        demanded="policy.yaml demands" if one["demanded"] else None,
        approvers=("ann", "bob")[: one["approvers"]],
        tainted=30.0 if one["tainted"] else None,
        taint_lasts=600.0,
        own=one["own"],
        stacks=StackRules(hosts=tuple(one["repo_hosts"])),
    )


_LIMITS = ("offers", "sudo_policy", "paths", "units", "hosts", "ports", "images", "concurrency", "dual")


def _here(one: dict[str, Any]) -> str | None:
    return "web-*" if "target" in one["frozen"] else None


def _frozen_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@cache
def _operation(tool: str, port: str, reaches_out: bool) -> Operation:
    return replace(CATALOGUE[tool], port=port, roles=ROLES, open_world=reaches_out)


@cache
def _target(kind: str, offers: Any, sudo: str, paths: Any, units: Any, hosts: Any, ports: Any, images: Any,
            concurrency: int, dual: bool) -> Target:  # fmt: skip
    limits = {"sudo_policy": sudo, "paths": paths, "units": units, "hosts": hosts, "ports": ports, "images": images}
    limits |= {"concurrency": concurrency, "dual_approval": dual}
    return target("web-1", kind, capabilities=offers, constraints=limits)
