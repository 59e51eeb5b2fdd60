"""Deployments for tests: stacks of a git server's repositories, on the test engine, through a whole gateway."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError

from systemmanager.executors import compose
from systemmanager.plans.store import PlanStore
from systemmanager.stacks import Exemption, StackRules
from systemmanager.target import Target
from tests.conftest import need
from tests.real.engine import Engine
from tests.real.gitserver import Repositories
from tests.support import UNTAINTED, call, target

CACHED = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "systemmanager-compose"


@pytest.fixture
def compose_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose v2 is on the PATH: this machine's own, else what tests/real/compose/install brought."""
    if compose.find() is None:
        folders = [os.environ.get("SYSTEMMANAGER_TEST_COMPOSE", ""), *map(str, sorted(CACHED.glob("*")))]
        monkeypatch.setenv("PATH", os.pathsep.join([*filter(None, folders), os.environ["PATH"]]))
    need("compose", None if compose.find() else "Docker Compose v2 is not installed (tests/real/compose/install)")


@dataclass
class Stacks:
    """A gateway's stacks on one target; every stack made is removed at the end."""

    tmp_path: Path
    engine: Engine
    repositories: Repositories
    target: Target
    rules: StackRules
    names: list[str] = field(default_factory=list)

    def name(self) -> str:
        made = f"sm{secrets.token_hex(4)}"
        self.names.append(made)
        return made

    @property
    def state(self) -> Path:
        """The gateway's state folder."""
        return self.tmp_path / "gateway"

    def limit(self, seconds: float) -> None:
        """No call takes longer than this."""
        constraints = self.target.constraints.model_copy(update={"timeout": seconds})
        self.target = self.target.model_copy(update={"constraints": constraints})

    def reply(self, tool: str, **arguments: Any) -> dict[str, Any]:
        policy = replace(UNTAINTED, stacks=self.rules)
        named = arguments if tool == "apply_plan" else {**arguments, "target": self.target.id}
        plans = PlanStore(self.state / "plans.sqlite")
        found: dict[str, Any] = call(self.state, tool, named, self.target, policy=policy, plans=plans)
        return found

    def data(self, tool: str, **arguments: Any) -> dict[str, Any]:
        reply = self.reply(tool, **arguments)
        assert reply["ok"], reply
        found: dict[str, Any] = reply["results"][0]["data"]
        return found

    def error(self, tool: str, **arguments: Any) -> dict[str, Any]:
        reply = self.reply(tool, **arguments)
        assert not reply["ok"], reply
        found: dict[str, Any] = reply.get("error") or reply["results"][0]["error"]
        return found

    def exempt(self, stack: str, repo: str, *allow: str) -> None:
        one = Exemption(stack, repo, frozenset(allow))
        self.rules = replace(self.rules, exemptions=(*self.rules.exemptions, one))

    def containers(self, stack: str) -> dict[str, dict[str, Any]]:
        """The stack's containers as the engine has them, by service."""
        label = f"com.docker.compose.project={stack}"
        rows = self.engine.client.containers(all=True, filters={"label": label})
        return {
            row["Labels"]["com.docker.compose.service"]: self.engine.client.inspect_container(row["Id"]) for row in rows
        }

    def clean(self) -> None:
        client = self.engine.client
        for name in self.names:
            label = {"label": f"com.docker.compose.project={name}"}
            for row in client.containers(all=True, filters=label):
                with suppress(APIError):
                    client.remove_container(row["Id"], v=True, force=True)
            for network in client.networks(filters=label):
                with suppress(APIError):
                    client.remove_network(network["Id"])
            for volume in client.volumes(filters=label)["Volumes"] or []:
                with suppress(APIError):
                    client.remove_volume(volume["Name"])


@pytest.fixture
def stacks(
    tmp_path: Path, engine: Engine, image: str, repositories: Repositories, compose_installed: None
) -> Iterator[Stacks]:
    where = target("host-01", "docker", connection={"socket_path": engine.socket})
    made = Stacks(tmp_path, engine, repositories, where, StackRules(hosts=("127.0.0.0/8",)))
    (made.state / "git").mkdir(parents=True)
    shutil.copy(repositories.authority, made.state / "git" / "git.127.0.0.1.ca")
    try:
        yield made
    finally:
        made.clean()
