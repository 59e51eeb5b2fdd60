"""Pulling images from a registry on this machine."""

import asyncio
import secrets
from pathlib import Path

import pytest

from tests.real.docker_calls import KINDS, answer, failure, on
from tests.real.engine import Engine, until
from tests.real.registry import Registry
from tests.support import OPERATOR, principal, real_gateway, run


@pytest.mark.parametrize("kind", KINDS)
def test_a_pull_says_what_came_and_whether_it_is_new(
    kind: str, engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    name = registry.put("team/app", "1.0", Cmd=["/bin/true"])
    first = answer(tmp_path, "pull_docker_image", {"image_name": name, "tag": "1.0"}, on(engine, kind))
    assert first["updated"] and first["image"] == f"{name}:1.0"
    assert first["digest"] in {key for _, key in registry.manifests}
    assert engine.client.inspect_image(f"{name}:1.0")["Id"].startswith(f"sha256:{first['id']}")
    again = answer(tmp_path, "pull_docker_image", {"image_name": name, "tag": "1.0"}, on(engine, kind))
    assert again == {**first, "updated": False}
    registry.put("team/app", "1.0", Cmd=["/bin/false"])
    newer = answer(tmp_path, "pull_docker_image", {"image_name": name, "tag": "1.0"}, on(engine, kind))
    assert newer["updated"] and newer["id"] != first["id"]
    by_digest = {"image_name": f"{name}@{first['digest']}"}
    assert answer(tmp_path, "pull_docker_image", by_digest, on(engine, kind))["id"] == first["id"]
    engine.client.remove_image(newer["id"], force=True)
    engine.client.remove_image(first["id"], force=True)


def test_what_a_registry_refuses_is_told_apart(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    name = registry.put("team/app", "1.0")
    registry.forbidden.add("team/private")
    cases = {
        (name, "2.0"): "not_found",
        (f"{registry.address}/team/none", "1.0"): "not_found",
        (f"{registry.address}/team/private", "1.0"): "auth_refused",
        ("127.0.0.1:9/team/app", "1.0"): "unreachable",
    }
    for (image, tag), code in cases.items():
        error = failure(tmp_path, "pull_docker_image", {"image_name": image, "tag": tag}, on(engine))
        assert error["code"] == code, error
        assert f"{image}:{tag}" in error["message"]


def test_only_listed_images_are_pulled(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    name = registry.put("team/app")
    where = on(engine, constraints={"images": ["nginx"]})
    assert failure(tmp_path, "pull_docker_image", {"image_name": name}, where)["code"] == "image_not_allowed"
    assert registry.asked == []


def test_a_pull_needs_a_persons_yes(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    arguments = {"image_name": registry.put("team/app"), "target": "host-01"}

    async def work() -> str:
        async with real_gateway(tmp_path, on(engine)) as gateway:
            reply = await gateway.call(principal("docker:admin"), "pull_docker_image", arguments)
            return str((reply.results[0].error or {})["code"])

    assert run(work()) == "approval_required"
    assert not any(map(registry.is_layer, registry.asked)), "it was looked up for the plan, and not pulled"


def test_a_cancelled_pull_ends_on_the_engine_too(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    name = registry.put("team/app", files={"fresh": secrets.token_hex(20_000)})
    registry.gate.clear()

    async def approve(_: object) -> str:
        return "the test"

    async def work() -> None:
        async with real_gateway(tmp_path, on(engine)) as gateway:
            arguments = {"image_name": name, "target": "host-01"}
            pull = asyncio.create_task(gateway.call(OPERATOR, "pull_docker_image", arguments, approve=approve))
            await asyncio.to_thread(until, lambda: any(map(registry.is_layer, registry.asked)))
            pull.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pull

    run(work())
    until(lambda: registry.left)
    registry.gate.set()
    with pytest.raises(AssertionError, match="not within"):
        until(lambda: engine.client.images(name), 1.5)


def name_of(tmp_path: Path) -> str:
    """A text of this test run alone, so that no layer is on the engine already."""
    return str(tmp_path)
