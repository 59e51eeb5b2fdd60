"""Every case of the catalogue, held to the same bar. One class per group, so that the workers share them."""

import os
from collections import Counter
from typing import Any

import pytest

from tests import test_token_mutations
from tests.attacks import test_reference
from tests.attacks.arena import Arena
from tests.attacks.attackers import ATTACKERS
from tests.attacks.catalogue import FOLDER, GROUPS, Case, cases
from tests.attacks.judging import judge
from tests.attacks.sequences import SEQUENCES
from tests.attacks.tampering import tamper
from tests.real import test_audit_kill9
from tests.support import run

WRITTEN = [group for group in GROUPS if (FOLDER / f"{group}.yaml").exists()]
HOW = ATTACKERS | SEQUENCES | {"tamper": tamper}
LEAST = 300
"""Cases of the catalogue, at least."""


def holds(group: str) -> type:
    """The test class of one group."""

    @pytest.mark.parametrize("case", cases(group), ids=str)
    def test_is_refused(
        self: Any,
        case: Case,
        arena: Arena,
        logged: list[str],
        capfd: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
        request: pytest.FixtureRequest,
        record_property: Any,
    ) -> None:
        record_property("group", group)
        if case.how == "argv":
            arena.arrived = request.getfixturevalue("arrived")
        told = run(HOW[case.how](case, arena))
        finding = judge(case, told, arena, "\n".join([*logged, *capfd.readouterr(), *caplog.messages]))
        record_property("accepted", finding.accepted)
        record_property("effects", len(finding.effects))
        assert not finding.wrong, "\n".join(finding.wrong)

    if any(case.how == "argv" for case in cases(group)):
        # First of all: the arena hides the machine's programs.
        test_is_refused = pytest.mark.usefixtures("arrived")(test_is_refused)
    return type(f"Test{group.title()}", (), {"test_is_refused": test_is_refused})


for _group in WRITTEN:
    _class = holds(_group)
    globals()[_class.__name__] = _class


def test_the_catalogue_is_whole() -> None:
    every = [case for group in GROUPS for case in cases(group)]
    twice = [id for id, count in Counter(case.id for case in every).items() if count > 1]
    assert not twice, f"ids that stand twice: {twice}"
    assert len(every) >= LEAST


def test_as_many_are_tried_as_was_promised() -> None:
    assert 4 * test_reference.ROUNDS >= 100_000, "random questions to the gate and to the naive evaluator"
    assert len(test_token_mutations.MUTATIONS) * (test_token_mutations.ROUNDS + 1_000) >= 100_000
    assert test_audit_kill9.ROUNDS >= 200 or "SYSTEMMANAGER_TEST_ROUNDS" in os.environ, "kill -9"
