"""Fake ports for tests of the gateway: targets that do as their ids say, and an engine that counts."""

import asyncio
from pathlib import Path
from typing import Any

from systemmanager.errors import ConnectionLost, Unreachable
from systemmanager.gateway import Gateway
from systemmanager.ports import Cpu, Memory, SystemStatus
from systemmanager.request import Permit
from tests.support import OPERATOR, fake_gateway, records, run, target

STATUS = SystemStatus(
    hostname="h", system="s", uptime=1, cpu=Cpu(percent=1, cores=1, load=[0, 0, 0]), disks=[],
    memory=Memory(total=2, available=1, percent=50),
)  # fmt: skip


class Facts:
    """A target that answers, fails or hangs as its id says."""

    def __init__(self, id: str) -> None:
        self.id = id

    async def status(self) -> SystemStatus:
        if self.id.startswith("hung"):
            await asyncio.Event().wait()
        if self.id.startswith("down"):
            raise Unreachable(f"{self.id} does not answer")
        if self.id.startswith("broken"):
            raise RuntimeError("hunter2 in a traceback")
        if self.id.startswith("timeout"):
            raise TimeoutError("somebody else's")
        if self.id.startswith("cancelled"):
            raise asyncio.CancelledError
        if self.id.startswith("exit"):
            raise ConnectionLost("password=hunter2\x1b[31m")
        return STATUS


def facts(permit: Permit, name: str) -> Facts:
    assert name == "Facts"
    return Facts(permit.target.id)


def fleet(tmp_path: Path, *ids: str, **fields: Any) -> Gateway:
    return fake_gateway(tmp_path, facts, *(target(id, "ssh", constraints={"timeout": 0.2}) for id in ids), **fields)


def ask(gateway: Gateway, arguments: dict[str, Any], tool: str = "get_system_status", **fields: Any) -> dict[str, Any]:
    who = fields.pop("who", OPERATOR)
    return run(gateway.call(who, tool, arguments, **fields)).as_dict()


def codes(reply: dict[str, Any]) -> dict[str, str]:
    return {one["target"]: one["error"]["code"] if "error" in one else "ok" for one in reply["results"]}


def phases(tmp_path: Path) -> list[tuple[str, str | None, str | None]]:
    return [(one["phase"], one.get("target"), one.get("code")) for one in records(tmp_path)]


class Engine:
    """A Docker port that counts what is done to it."""

    def __init__(self) -> None:
        self.pulled = 0

    async def inspect_image(self, name: str) -> dict[str, Any]:
        return {"Id": "sha256:" + "0" * 64, "Size": 1}

    async def digest_now(self, reference: str) -> str:
        return "sha256:" + "1" * 64

    async def pull(self, image: str, tag: str) -> dict[str, Any]:
        self.pulled += 1
        return {"Id": "sha256:" + "1" * 64, "Size": 1, "RepoDigests": []}


PULL = {"targets": ["a", "b"], "image_name": "nginx"}


def engines(tmp_path: Path, engine: Engine) -> Gateway:
    no_images = target("b", "docker", constraints={"images": []})
    return fake_gateway(tmp_path, lambda permit, name: engine, target("a", "docker"), no_images)
