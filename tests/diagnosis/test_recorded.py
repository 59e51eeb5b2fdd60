"""Logs and states of programs that really failed, or did not, as `python -m tests.real.faults --record` wrote them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from systemmanager.diagnosis.diagnose import Diagnosis, Log, diagnose
from systemmanager.diagnosis.facts import of_container

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.yaml"))


def recorded(path: Path) -> tuple[dict[str, Any], Diagnosis]:
    case: dict[str, Any] = yaml.safe_load(path.read_text())
    return case, diagnose(Log.of("app", case["log"], 1.8e9, of_container(case["state"])))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_log_leads_to_its_cause(path: Path) -> None:
    case, found = recorded(path)
    assert (found.cause.cause.code if found.cause else None) == case["cause"], found.causes


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_claim_names_lines_that_there_are_and_a_confidence(path: Path) -> None:
    case, found = recorded(path)
    numbers = range(1, case["log"].count("\n") + 2)
    for cause in found.causes:
        assert 0.5 <= cause.confidence <= 0.98 and (cause.lines or cause.facts or not case["log"])
        assert set(cause.lines) <= set(numbers)
    for group in found.groups:
        assert group.count >= len(group.lines) > 0 and set(group.lines) <= set(numbers)
    assert all(issue.lines and set(issue.lines) <= set(numbers) for issue in found.issues)
