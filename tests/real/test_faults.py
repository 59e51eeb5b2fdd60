"""Live faults: the cause is named first, with lines that say so; healthy programs have none. See `make score-logs`."""

from pathlib import Path

import pytest

from tests.conftest import need
from tests.real.engine import Engine
from tests.real.faults.catalogue import FAULTS, HEALTHY
from tests.real.faults.lab import lacking, scored

QUICK = [case for case in (*FAULTS, *HEALTHY) if case.quick]


@pytest.mark.docker
def test_live_faults_are_named_and_healthy_programs_are_not(engine: Engine, tmp_path: Path) -> None:
    need("docker", lacking())
    scores = scored(engine, QUICK, tmp_path)
    wrong = {one.case.name: (one.causes, one.log[-600:]) for one in scores if not one.right}
    unsaid = {one.case.name: one.found["root_cause"]["lines"] for one in scores if one.right and not one.cites}
    assert not wrong and not unsaid, (wrong, unsaid)


def test_the_catalogue_is_large_enough() -> None:
    assert len(FAULTS) >= 30 and len({case.cause for case in FAULTS}) >= 30 and len(HEALTHY) >= 10
    assert len({case.name for case in (*FAULTS, *HEALTHY)}) == len(FAULTS) + len(HEALTHY)
