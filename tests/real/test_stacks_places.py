"""Stacks on each kind of target, and of images that a registry has."""

from typing import Any

import pytest

from tests.real.engine import Engine
from tests.real.registry import Registry, digest
from tests.real.stacks import Stacks
from tests.real.test_docker_faults import Authority, at, listening, mutual, relay
from tests.support import target

WEB = 'image: "systemmanager-test:1", stop_grace_period: 100ms, volumes: ["data:/data"]'
TEXT = f"services:\n  web: {{{WEB}}}\nvolumes: {{data: {{}}}}\n"


def whole_life(stacks: Stacks) -> None:
    """A stack is deployed, looked at, updated and removed where `stacks.target` is."""
    name, repo = stacks.name(), stacks.repositories.url("app")
    first = stacks.repositories.commit("app", {"docker-compose.yml": TEXT})
    assert stacks.data("deploy_stack", stack_name=name, repo_url=repo)["changed"]
    assert stacks.containers(name)["web"]["State"]["Running"], "on that very engine"
    assert name in {one["stack"] for one in stacks.data("list_stacks")["stacks"]}
    second = stacks.repositories.commit("app", {"docker-compose.yml": TEXT.replace("web:", "www:")})
    planned = stacks.data("update_stack", stack_name=name, dry_run=True)["plan"]
    assert f"Volumes that are mounted again: {name}_data." in planned["notes"], planned
    moved = stacks.data("update_stack", stack_name=name)["difference"]
    assert (moved["previous_commit"], moved["commit"]) == (first, second), moved
    status = stacks.data("get_stack_status", stack_name=name)
    assert status["ok"] and [one["service"] for one in status["services"]] == ["www"], status
    gone = stacks.data("remove_stack", stack_name=name, remove_volumes=True)
    assert gone["volumes_removed"] == [f"{name}_data"] and not stacks.containers(name)


def test_a_stack_lives_on_an_engine_over_tcp_with_tls(stacks: Stacks, engine: Engine) -> None:
    authority = Authority(stacks.tmp_path / "own")
    with listening(relay(engine), tls=mutual(authority.folder("engine"))) as url:
        stacks.target = at(url, cert_path=str(authority.folder("gateway")))
        whole_life(stacks)
        stacks.target = at(url, cert_path=str(Authority(stacks.tmp_path / "other").folder("gateway")))
        assert "TLS" in stacks.error("list_stacks")["message"]


def test_a_stack_lives_on_the_machine_of_the_gateway(stacks: Stacks) -> None:
    stacks.target = target("local", "local", connection={"socket_path": stacks.engine.socket})
    whole_life(stacks)


def image(stacks: Stacks, reference: str, **more: Any) -> dict[str, Any]:
    stacks.repositories.commit(
        "app", {"docker-compose.yml": f'services: {{web: {{image: "{reference}", stop_grace_period: 100ms}}}}\n'}
    )
    return {"repo_url": stacks.repositories.url("app"), **more}


def test_a_stack_runs_on_what_a_registry_has(stacks: Stacks, registry: Registry) -> None:
    name = stacks.name()
    reference = registry.put("shop/web", "1.2", {"made": "first"}, Cmd=["/bin/sleep", "600"]) + ":1.2"
    said = stacks.data("deploy_stack", stack_name=name, **image(stacks, reference), dry_run=True)
    (published,) = {digest(content) for (_, tag), content in registry.manifests.items() if tag == "1.2"}
    (service,) = (one for one in said["plan"]["changes"] if one["what"] == "service web")
    assert service["after"] == f"{reference}, {published}", said
    assert not [one for one in registry.asked if registry.is_layer(one)], "nothing was pulled to say so"
    registry.put("shop/web", "1.2", {"made": "second"}, Cmd=["/bin/sleep", "600"])
    assert stacks.error("apply_plan", plan_id=said["plan_id"])["code"] == "precondition_failed"
    done = stacks.data("deploy_stack", stack_name=name, **image(stacks, reference))
    (now,) = {digest(content) for (_, tag), content in registry.manifests.items() if tag == "1.2"}
    assert done["difference"]["images"][0]["digest"] == now != published, done
    found = stacks.containers(name)["web"]
    assert found["Config"]["Image"] == reference and found["State"]["Running"]


def test_an_image_that_no_registry_has_leaves_what_runs_alone(stacks: Stacks, registry: Registry) -> None:
    name = stacks.name()
    reference = registry.put("shop/web", "1", Cmd=["/bin/sleep", "600"])
    stacks.data("deploy_stack", stack_name=name, **image(stacks, f"{reference}:1"))
    before = stacks.containers(name)["web"]
    image(stacks, f"{reference}:2")
    error = stacks.error("update_stack", stack_name=name)
    assert error["code"] == "not_found" and "shop/web" in error["message"], error
    assert stacks.containers(name)["web"]["Id"] == before["Id"]


@pytest.mark.parametrize("value", ["s3", "abc", "hunt2"])
def test_a_short_secret_of_a_stack_is_masked_by_its_name(
    stacks: Stacks, value: str, capfd: pytest.CaptureFixture[str]
) -> None:
    name = stacks.name()
    text = 'services:\n  web:\n    image: systemmanager-test:1\n    environment: {DB_PASSWORD: "${DB_PASSWORD}"}\n'
    text += '    command: ["sh", "-c", "env; echo connected with DB_PASSWORD=$$DB_PASSWORD; exit 1"]\n'
    stacks.repositories.commit("app", {"docker-compose.yml": text})
    error = stacks.error(
        "deploy_stack", stack_name=name, repo_url=stacks.repositories.url("app"), env_vars={"DB_PASSWORD": value}
    )
    assert "DB_PASSWORD=[redacted]" in error["details"]["logs"], error
    told = str(error) + "".join(map(str, capfd.readouterr())) + (stacks.state / "audit.jsonl").read_text()
    assert f"DB_PASSWORD={value}" not in told and f'"{value}"' not in told
