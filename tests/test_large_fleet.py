"""A registry of ten thousand targets: what is asked of it costs what it must, and calls go on while it is read."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp_types import ResourceTemplateReference
from structlog.testing import capture_logs

from systemmanager import registry
from systemmanager.server import app
from systemmanager.settings import Settings
from systemmanager.shaping import MAX_REPLY_BYTES
from systemmanager.target import Target
from tests.fakes import facts
from tests.serving import served
from tests.support import OPERATOR, fake_gateway, run, target
from tests.support import registry as of_targets
from tests.test_canaries import iter_minutes

FEW, MANY = 1_000, 10_000
LINEAR = 2.5 * MANY / FEW
"""Times the CPU that ten times the targets may cost where each is looked at."""
NEARLY_FREE = 6.0
"""Where targets of one sort are looked at once: reading the list itself is most of it."""

ASKED: dict[str, tuple[float, Callable[[Any], Awaitable[Any]]]] = {
    "tools/list": (NEARLY_FREE, lambda client: client.list_tools()),
    "prompts/list": (NEARLY_FREE, lambda client: client.list_prompts()),
    "resources/list": (NEARLY_FREE, lambda client: client.list_resources()),
    "resources/templates/list": (NEARLY_FREE, lambda client: client.list_resource_templates()),
    "list_targets": (NEARLY_FREE, lambda client: client.call_tool("list_targets", {})),
    "its last page": (NEARLY_FREE, lambda client: client.call_tool("list_targets", {"cursor": "900"})),
    "a selector": (
        LINEAR,
        lambda client: client.call_tool("list_targets", {"selector": "tag:rack3 and env:prod"}),
    ),
    "the registry resource": (NEARLY_FREE, lambda client: client.read_resource("systemmanager://targets")),
    "a completion": (
        10.0,
        lambda client: client.complete(
            ResourceTemplateReference(type="ref/resource", uri="systemmanager://targets/{id}/status"),
            {"name": "id", "value": "web-0"},
        ),
    ),
    "a misspelt target": (
        LINEAR,
        lambda client: client.call_tool("get_system_status", {"target": "wbe-00001"}, raise_on_error=False),
    ),
    "an explanation": (
        NEARLY_FREE,
        lambda client: client.call_tool("explain_access", {"tool": "get_system_status", "target": "web-00001"}),
    ),
    "a call on one": (NEARLY_FREE, lambda client: client.call_tool("get_system_status", {"target": "web-00001"})),
    "a call on all": (LINEAR, lambda client: client.call_tool("get_system_status", {"targets": "*"})),
}


def text_of(count: int) -> str:
    rows = (
        f"  web-{number:05}:\n    id: web-{number:05}\n    executor: ssh\n"
        f"    connection: {{host: 10.0.{number // 256}.{number % 256}, username: ops, key_path: /etc/key}}\n"
        f"    capabilities: [system:read, network:diag]\n"
        f"    metadata: {{tags: [web, rack{number % 40}], environment: prod}}\n"
        for number in range(count)
    )
    return 'version: "1.0"\ntargets:\n' + "".join(rows)


@pytest.fixture(scope="module")
def registries() -> dict[int, registry.Registry]:
    def one(number: int) -> Target:
        labels = {"tags": ("web", f"rack{number % 40}"), "environment": "prod"}
        return first.model_copy(update={"id": f"web-{number:05}", "metadata": first.metadata.model_copy(update=labels)})

    first = target("web", "ssh", capabilities=["system:read", "network:diag"])
    return {count: of_targets(*map(one, range(count))) for count in (FEW, MANY)}


async def least(work: Callable[[], Awaitable[Any]], times: int = 3) -> tuple[float, Any]:
    """The CPU of the cheapest of some runs, in seconds, and the last answer."""
    took, answer = [], None
    for _ in range(times):
        started = time.process_time()
        answer = await work()
        took.append(time.process_time() - started)
    return min(took), answer


def test_ten_thousand_targets_cost_no_more_than_ten_times_a_thousand(
    registries: dict[int, registry.Registry], tmp_path: Path
) -> None:
    async def work() -> dict[str, list[float]]:
        took: dict[str, list[float]] = {name: [] for name in ASKED}
        gateway = fake_gateway(tmp_path, facts, clock=iter_minutes())
        async with served(gateway) as there, there.client("auto") as client:
            for count in (FEW, MANY):
                gateway.replace_registry(registries[count])
                for name, (_, ask) in ASKED.items():
                    cpu, answer = await least(lambda ask=ask: ask(client), 1 if name == "a call on all" else 3)  # type: ignore[misc]
                    took[name].append(cpu)
                    assert len(str(answer)) < 3 * MAX_REPLY_BYTES, name
        return took

    with capture_logs():
        took = run(work())
    slow = {name: many / few for name, (few, many) in took.items() if many / few > ASKED[name][0]}
    assert not slow, slow


def test_calls_go_on_while_a_large_registry_is_read(tmp_path: Path) -> None:
    targets = tmp_path / "targets.yaml"
    targets.write_text(text_of(FEW))
    given = {
        "SYSTEMMANAGER_TARGETS_CONFIG": str(targets),
        "SYSTEMMANAGER_STATE_DIR": str(tmp_path / "state"),
    }

    async def work() -> None:
        async with app.running(Settings.model_validate(given)) as running:
            targets.write_text(text_of(3 * FEW))
            reload = asyncio.create_task(running.reload())
            again = asyncio.create_task(running.reload())
            answered = 0
            while not reload.done() and answered < 50:
                assert (await running.gateway.call(OPERATOR, "health_check", {})).ok
                answered += 1
                await asyncio.sleep(0.01)
            assert answered >= 10 and not again.done(), "one at a time"
            await asyncio.gather(reload, again)
            assert len(running.gateway.registry.targets) == 3 * FEW

    with capture_logs():
        run(work())
