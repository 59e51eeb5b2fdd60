"""The official MCP conformance suites and MCP Inspector's command line, against `systemmanager serve` and against the
same app factory with the suites' own tools."""

import asyncio
import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from systemmanager.jobs import taking
from systemmanager.jobs.life import Jobs
from systemmanager.jobs.store import JobStore
from systemmanager.server.changes import Changes
from tests.conftest import need
from tests.real.conformance.expected import EVERYWHERE, ON_THE_REAL_SERVER, ONLY
from tests.real.conformance.fixtures import add_fixtures
from tests.real.conformance.lasting import add_lasting, lasting_tools
from tests.real.conformance.proxy import bearing
from tests.serving import served, serving, token
from tests.support import real_gateway, run, target

pytestmark = pytest.mark.mcp

HERE = Path(__file__).parent / "conformance"
WITHIN = 300.0
SUITES = {
    "0.1, all": ("conformance", "--suite", "all"),
    "0.2, 2025-11-25": ("conformance-next", "--requirements", "2025-11-25"),
    "0.2, 2026-07-28": ("conformance-next", "--requirements", "2026-07-28"),
}
PASSING = {
    "0.1, all": {"server-initialize", "ping", "tools-list", "prompts-list", "resources-list", "tools-call-error"},
    "0.2, 2025-11-25": {"server-initialize", "server-session-lifecycle", "logging-set-level", "completion-complete"},
    "0.2, 2026-07-28": {"caching", "http-header-validation", "sep-2164-resource-not-found", "tools-list"},
}
"""What must have been run and be right on the real server as it is."""

INSTALLED = Path(
    os.environ.get("SYSTEMMANAGER_TEST_NODE")
    or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache",
        "systemmanager-conformance",
        hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16],
    )
)
MODULES = INSTALLED / "node_modules"
NODE = MODULES / f"node-linux-{'arm64' if platform.machine() == 'aarch64' else 'x64'}" / "bin/node"
INSPECTOR = MODULES / "@modelcontextprotocol/inspector/clients/launcher/build/index.js"


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    ready = (INSTALLED / ".ready").exists()
    need("mcp", None if ready else f"the suites are not installed: run {HERE.relative_to(HERE.parents[2])}/install")


async def node(folder: Path, *argv: str) -> tuple[int, str, str]:
    """Run a program of node to its end: its exit status, its answer and its complaints."""
    process = await asyncio.create_subprocess_exec(
        NODE,
        *argv,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complained = await asyncio.wait_for(process.communicate(), WITHIN)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, said.decode(), complained.decode()


async def judge(folder: Path, url: str, suite: str) -> dict[str, list[str]]:
    """Run a suite: what failed, per scenario."""
    package, *options = SUITES[suite]
    for attempt in range(3):
        results = folder / f"results-{attempt}"
        output = ("-o", str(results))
        told = await node(folder, str(MODULES / package / "dist/index.js"), "server", "--url", url, *options, *output)
        said = "".join(map(str, told))
        if "node:internal/deps/undici" not in said:
            break  # else an assertion of node's own HTTP client ended the suite, not we
    found = {}
    for checks in results.glob("*/checks.json"):
        scenario = re.sub(r"^server-|-\d{4}-\d\d-\d\dT.*", "", checks.parent.name)
        failed = [one for one in json.loads(checks.read_text()) if one["status"] == "FAILURE"]
        found[scenario] = [f"{one['id']}: {one.get('errorMessage')}" for one in failed]
    assert len(found) > 25, said
    return found


def compare(found: Mapping[str, list[str]], expected: Mapping[str, str]) -> None:
    failed = {scenario: why for scenario, why in found.items() if why}
    assert {name: why for name, why in failed.items() if name not in expected} == {}
    assert not (expected.keys() & found.keys()) - failed.keys(), "these pass now: take them off the list"


@pytest.mark.parametrize("suite", SUITES)
def test_serve_conforms(suite: str, tmp_path: Path) -> None:
    async def work(url: str) -> dict[str, list[str]]:
        async with bearing(url, token("admin")) as proxied:
            return await judge(tmp_path, proxied, suite)

    with serving(tmp_path / "serve") as running:
        found = run(work(running.url))
        assert not [line for line in running.lines() if line["level"] in ("error", "critical")]
    compare(found, ON_THE_REAL_SERVER)
    assert PASSING[suite] <= {scenario for scenario, why in found.items() if not why}


@pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")
@pytest.mark.parametrize("suite", SUITES)
def test_the_app_factory_conforms_with_the_suites_own_tools(suite: str, tmp_path: Path) -> None:
    async def work() -> dict[str, list[str]]:
        jobs = Jobs(JobStore(tmp_path / "jobs.sqlite"), tmp_path / "jobs")
        async with real_gateway(tmp_path, target("local"), jobs=jobs) as gateway, taking.working(gateway):
            async with served(gateway) as there:
                assert there.server is not None
                add_fixtures(there.server, Changes(there.server))
                add_lasting(there.server, dict(there.server.own))  # type: ignore[attr-defined]
                return await judged(there.url)

    async def judged(url: str) -> dict[str, list[str]]:
        async with bearing(url, token("admin")) as proxied:
            return await judge(tmp_path, proxied, suite)

    with lasting_tools():
        found = run(work())
    compare(found, EVERYWHERE)
    for scenario in ONLY.keys() & found.keys():
        assert {one.partition(":")[0] for one in found[scenario]} == ONLY[scenario]


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspector_lists_and_calls_tools(era: str, tmp_path: Path) -> None:
    async def inspect(url: str, *argv: str) -> Any:
        bearing_header = f"Authorization: Bearer {token('admin')}"
        always = ("--cli", url, "--transport", "http", "--header", bearing_header, "--protocol-era", era)
        status, said, complained = await node(tmp_path, str(INSPECTOR), *always, *argv)
        assert status == 0, complained
        return json.loads(said)

    with serving(tmp_path / "serve") as running:
        listed = run(inspect(running.url, "--method", "tools/list"))
        assert {"list_targets", "get_system_status"} <= {tool["name"] for tool in listed["tools"]}
        call = ("--method", "tools/call", "--tool-name", "get_top_processes", "--tool-arg", "limit=3")
        answer = run(inspect(running.url, *call))
        assert len(answer["structuredContent"]["results"][0]["data"]["processes"]) == 3
        read = run(inspect(running.url, "--method", "resources/read", "--uri", "systemmanager://targets"))
        assert "local" in read["contents"][0]["text"]
        prompt = ("--method", "prompts/get", "--prompt-name", "system_status", "--prompt-args", "targets=local")
        assert "get_system_status" in json.dumps(run(inspect(running.url, *prompt)))
