"""`make attacks`: the whole catalogue, and the table of what came of it."""

import sys
from collections import Counter
from typing import Any

import pytest

from tests.attacks.catalogue import GROUPS


class Table:
    """Counts what the cases report, in whichever worker they ran."""

    def __init__(self) -> None:
        self.cases, self.accepted, self.effects, self.skipped = (Counter[str]() for _ in range(4))

    def pytest_runtest_logreport(self, report: Any) -> None:
        found = dict(report.user_properties)
        group = found.get("group")
        if report.skipped and group is None:  # before it began: its class says which group it is of
            group = next((one for one in GROUPS if f"::Test{one.title()}::" in report.nodeid), None)
        if group is None or not (report.when == "call" or report.skipped):
            return
        self.cases[group] += report.when == "call" and not report.skipped
        self.skipped[group] += report.skipped
        self.accepted[group] += bool(found.get("accepted"))
        self.effects[group] += found.get("effects", 0)

    def text(self) -> str:
        rows = [
            (title, self.cases[group], self.accepted[group], self.effects[group], self.skipped[group])
            for group, title in GROUPS.items()
        ]
        counts = (self.cases, self.accepted, self.effects, self.skipped)
        total = ("", *(count.total() for count in counts))
        lines = [f"{'class':<30}{'cases':>7}{'accepted':>10}{'effects':>9}", "-" * 56]
        for title, cases, accepted, effects, skipped in [*rows, total]:
            note = f"   {skipped} skipped" if skipped else ""
            lines.append(f"{title:<30}{cases:>7}{accepted:>10}{effects:>9}{note}")
        return "\n".join([*lines[:-1], "-" * 56, lines[-1]])


def main() -> int:
    table = Table()
    arguments = ["tests/attacks", "-q", "--no-header", "--tb=short", "-n", "2", "--dist", "loadscope"]
    status = pytest.main([*arguments, *sys.argv[1:]], plugins=[table])
    print(f"\n{table.text()}")
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
