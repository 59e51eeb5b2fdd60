"""The documents say what the program does."""

import re
from pathlib import Path
from typing import get_args

import pytest

from systemmanager import policyfile, registry
from systemmanager.approvals.webhook import SIGNATURE, TIMESTAMP
from systemmanager.operation import CATALOGUE
from systemmanager.scopes import SCOPES
from systemmanager.server.auth.tailnet import DEFAULT_CAPABILITY
from systemmanager.settings import Settings
from systemmanager.target import Constraints
from tests import documentation

ROOT = Path(__file__).parent.parent
README = documentation.README.read_text()


def test_the_readme_holds_the_tables_that_the_program_gives() -> None:
    assert documentation.rendered(README) == README, "run `make docs`"


def test_every_tool_has_a_row() -> None:
    assert [name for name in CATALOGUE if f"| `{name}(" not in README] == []


@pytest.mark.parametrize("name", Constraints.model_fields)
def test_every_constraint_is_documented(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_is_documented(scope: str) -> None:
    area, _, verb = scope.partition(":")
    assert any(part.startswith(f"{area}:") and verb in part for part in README.replace("`", " ").split())


def test_the_example_registry_loads(tmp_path: Path) -> None:
    names = {"SSH_KEY_WEB_SERVER_01": "/k", "SSH_KEY_DB_SERVER_01": "/k", "GRAFANA_TOKEN": "a-long-enough-token"}
    loaded = registry.load(ROOT / "targets.example.yaml", names)
    assert not loaded.faults
    assert {target.executor for target in loaded.targets.values()} == {"local", "ssh", "docker", "http"}


def test_the_policy_of_the_readme_loads(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(next(text for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "grants:" in text))
    policy = policyfile.load(path)
    assert policy.grants_for("ann@example.com") and policy.approvals.approvers and policy.taint_minutes == 10


def test_the_tests_that_the_threats_name_are_there() -> None:
    named = set(re.findall(r"`(tests/[a-z0-9_/.]+)`", README))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


SECURITY = README.partition("## Security")[2].partition("\n## ")[0]


def test_each_threat_says_what_stops_it_and_which_test_shows_it() -> None:
    table = SECURITY.partition("| who attacks ")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    assert len(rows) >= 8
    assert [row for row in rows if len(row) != 4 or not all(row) or "`tests/" not in row[3]] == []


@pytest.mark.parametrize(
    "said",
    [
        *(f"**{mode}**" for mode in get_args(get_args(Settings.model_fields["auth_modes"].annotation)[0])),
        "token mint", "token revoke", "tailscale.com/cap/tsidp", DEFAULT_CAPABILITY, "--tls-terminated-tcp",
        "MCP_PROXY_PROTOCOL", "SYSTEMMANAGER_APPROVAL_WEBHOOK_URL", TIMESTAMP, SIGNATURE, '"approved": true',
        "audit verify --witness", "### What is not protected", "make attacks",
    ],
)  # fmt: skip
def test_the_security_page_has_each_of_its_parts(said: str) -> None:
    assert said in SECURITY


def test_each_dependency_has_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    listed = [line for line in lines if line.startswith('  "') and any(mark in line for mark in ("=", '",'))]
    assert len(listed) > 15
    assert [line for line in listed if "#" not in line] == []
