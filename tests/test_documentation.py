"""The documents say what the program does."""

import re
from pathlib import Path

import pytest

from systemmanager import policyfile, registry
from systemmanager.operation import CATALOGUE
from systemmanager.scopes import SCOPES
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


def test_each_dependency_has_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    listed = [line for line in lines if line.startswith('  "') and any(mark in line for mark in ("=", '",'))]
    assert len(listed) > 15
    assert [line for line in listed if "#" not in line] == []
