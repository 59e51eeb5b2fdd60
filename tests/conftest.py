"""What every test shares: parts of the machine that a test may need, and a private state folder."""

import os
from pathlib import Path

import pytest

import systemmanager.cli  # noqa: F401  sets fastmcp's environment before fastmcp is imported

REQUIRED = frozenset(filter(None, os.environ.get("SYSTEMMANAGER_TEST_REQUIRE", "").split(",")))


def need(part: str, missing: str | None) -> None:
    """Skip a test by name because `part` (ssh, docker, mcp ...) is missing; a failure where the part is required."""
    if missing is None:
        return
    if part in REQUIRED:
        pytest.fail(f"{part} is required, but {missing}")
    pytest.skip(f"{part}: {missing}")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine reaches a test, and no test writes outside its own folder."""
    for name in list(os.environ):
        if name.startswith(("SYSTEMMANAGER_", "MCP_", "TSIDP_")) or name in (
            "CREDENTIALS_DIRECTORY",
            "STATE_DIRECTORY",
            "LOG_LEVEL",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
