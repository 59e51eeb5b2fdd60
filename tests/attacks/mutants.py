"""`python -m tests.attacks.mutants`: each rule in turn always allows, and the cases that notice are named.

Run by hand after a change of the rules or of the catalogue; a rule that nobody misses has no attack against it.
"""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest

from systemmanager.policy import gate
from systemmanager.policy.rules import RULES
from systemmanager.policy.verdicts import allow
from systemmanager.request import Request, Verdict

CHOSEN = "TestRights or TestReload or minute or dry-runs or crowd or change-after"
ENOUGH = 4


class Noticed:
    """The cases that fail."""

    def __init__(self) -> None:
        self.by: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.failed:
            self.by.append(report.nodeid.partition("[")[2].rstrip("]"))


def careless(name: str) -> Callable[[Request], Verdict]:
    return lambda request: allow(name, "a mutant")


def main() -> int:
    unseen = 0
    for rule in RULES:
        name, noticed = rule.__name__, Noticed()
        arguments = ["tests/attacks/test_catalogue.py", "-k", CHOSEN, f"--maxfail={ENOUGH}", "--tb=no"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gate, "RULES", tuple(careless(name) if one is rule else one for one in RULES))
            with redirect_stdout(StringIO()):
                pytest.main(arguments, plugins=[noticed])
        unseen += not noticed.by
        print(f"{name:<14}{', '.join(noticed.by) or 'nobody notices'}", flush=True)
    return int(unseen > 0)


if __name__ == "__main__":
    raise SystemExit(main())
