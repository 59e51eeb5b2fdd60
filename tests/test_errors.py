"""Failures: each has its place in the drawn tree, and how it is told fits the call."""

import re
from pathlib import Path
from typing import Any

import pytest

from systemmanager import errors
from systemmanager.errors import ConnectionLost, GatewayError, Unreachable
from systemmanager.executors.docker_errors import pull_failed
from tests.support import OPERATOR, fake_gateway, principal, run, target


def _below(kind: type[GatewayError]) -> set[type[GatewayError]]:
    return {kind}.union(*map(_below, kind.__subclasses__()))


def test_the_drawn_tree_names_every_failure_with_its_code() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +([a-z_]+)?", errors.__doc__ or ""))
    declared = {kind for kind in _below(GatewayError) if kind.__module__ == errors.__name__} - {GatewayError}
    assert drawn.keys() == {kind.__name__ for kind in declared}
    declared -= {errors.CallError, errors.TargetError}  # they have no code of their own
    assert {kind.__name__: kind.code for kind in declared}.items() <= drawn.items()


def _refused(tmp_path: Path, port: Any, who: Any, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    gateway = fake_gateway(tmp_path, port, target("d", "docker"))
    error: dict[str, Any] = run(gateway.call(who, tool, arguments)).as_dict()["results"][0]["error"]
    return error


@pytest.mark.parametrize(("action", "hint"), [("logs", "Nothing was changed"), ("stop", "look before you repeat")])
def test_only_what_may_have_changed_something_leaves_a_doubt(tmp_path: Path, action: str, hint: str) -> None:
    def lost(permit: Any, name: str) -> Any:
        raise ConnectionLost("it went away")

    arguments = {"action": action, "name_or_id": "web", "target": "d"}
    assert hint in _refused(tmp_path, lost, OPERATOR, "manage_container", arguments)["hint"]


def test_a_hint_is_a_sentence(tmp_path: Path) -> None:
    elsewhere = principal("admin", targets="other")
    hint = _refused(tmp_path, lambda permit, name: None, elsewhere, "get_container_list", {"target": "d"})["hint"]
    assert hint == "It would need a token that is minted with --targets that include 'd'."
    gateway = fake_gateway(tmp_path, lambda permit, name: None, target("d", "docker"))
    asked = {"image_name": "nginx", "target": "d", "dry_run": True}
    for _ in range(5):
        run(gateway.call(OPERATOR, "pull_docker_image", asked))
    last = run(gateway.call(OPERATOR, "pull_docker_image", {**asked, "dry_run": False})).as_dict()
    assert last["results"][0]["error"]["hint"] == "Wait a minute."


def test_a_registry_out_of_reach_says_what_to_look_at() -> None:
    error = pull_failed("x.lan/a:1", "dial tcp: lookup x.lan: no such host")
    assert isinstance(error, Unreachable) and "pull_latest=false" in (error.hint or "")
