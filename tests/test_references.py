"""The engine's port pulls and runs what the policy lets through, and nothing else: one rule for both."""

from typing import Any, cast

import pytest

from systemmanager.errors import Denied
from systemmanager.executors.docker import EngineDocker
from systemmanager.executors.docker_client import Client
from tests.policy.test_rules import IMAGES
from tests.support import permitted, run, target


class Reached(Exception):
    """The engine would have been asked."""


class Asked:
    async def ask(self, *_: Any, **__: Any) -> Any:
        raise Reached

    messages = ask


def port(*patterns: str) -> EngineDocker:
    where = target("a", "docker", constraints={"images": list(patterns)})
    return EngineDocker(cast(Client, Asked()), permitted("pull_docker_image", where))


@pytest.mark.parametrize(("image", "tag", "pattern", "named"), IMAGES, ids=lambda value: str(value)[:48])
def test_the_port_pulls_exactly_what_a_pattern_names(image: str, tag: str, pattern: str, named: bool) -> None:
    with pytest.raises(Reached if named else Denied):
        run(port(pattern).pull(image, tag))


@pytest.mark.parametrize(("image", "error"), [("nginx", Reached), ("evil", Denied), ("sha256:" + "0" * 64, Reached)])
def test_the_port_runs_what_a_pattern_names_and_what_has_run(image: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(port("nginx").create("web", {"Image": image}))
