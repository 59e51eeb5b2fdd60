"""Calls of Docker tools through a gateway, on the test engine."""

from pathlib import Path
from typing import Any

from systemmanager.target import Target
from tests.real.engine import Engine
from tests.support import call, target

KINDS = ("local", "docker")


def on(engine: Engine, kind: str = "docker", **fields: Any) -> Target:
    """A target of this kind that has the test engine."""
    return target("host-01", kind, connection={"socket_path": engine.socket}, **fields)


def answer(tmp_path: Path, tool: str, arguments: dict[str, Any], where: Target) -> dict[str, Any]:
    """The data of a call that must succeed."""
    reply = call(tmp_path, tool, {**arguments, "target": where.id}, where)
    assert reply["ok"], reply
    data: dict[str, Any] = reply["results"][0]["data"]
    return data


def failure(tmp_path: Path, tool: str, arguments: dict[str, Any], where: Target) -> dict[str, Any]:
    """The error of a call that must fail."""
    reply = call(tmp_path, tool, {**arguments, "target": where.id}, where)
    assert not reply["ok"], reply
    error: dict[str, Any] = reply["results"][0]["error"]
    return error
