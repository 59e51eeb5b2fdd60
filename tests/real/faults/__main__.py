"""`make score-logs`: every fault and every healthy program, live, and what was said of each."""

import sys
import tempfile
from pathlib import Path

import yaml
from docker import APIClient
from rich.console import Console
from rich.table import Table

from tests.real.engine import Engine, missing, shared_engine
from tests.real.faults.catalogue import FAULTS, HEALTHY
from tests.real.faults.lab import Score, lacking, scored

ENOUGH = 0.9


RECORDED = Path(__file__).parent.parent.parent / "diagnosis" / "recorded"


def main(words: list[str], console: Console) -> int:
    """All cases, or those that are named; `--record` writes their logs down for `tests/diagnosis`."""
    only = [word for word in words if word != "--record"]
    if why := missing() or lacking():
        console.print(f"no score: {why}")
        return 2
    cases = [case for case in (*FAULTS, *HEALTHY) if not only or case.name in only]
    with shared_engine() as socket, tempfile.TemporaryDirectory() as state:
        client = APIClient(f"unix://{socket}", version="auto", timeout=60)
        try:
            scores = scored(Engine(str(socket), client), cases, Path(state))
        finally:
            client.close()
    console.print(table(scores))
    if "--record" in words:
        record(scores)
    faults = [one for one in scores if one.case.cause]
    first = sum(one.right for one in faults)
    cited = sum(one.cites for one in faults if one.right)
    claimed = sum(not one.right for one in scores if not one.case.cause)
    console.print(f"top-1 {first} of {len(faults)}, right lines cited {cited} of {first}")
    console.print(f"causes claimed on healthy logs: {claimed} of {len(scores) - len(faults)}")
    if only:
        for one in scores:
            console.print(one.log, one.found, markup=False)
    return 0 if first >= ENOUGH * len(faults) and not claimed else 1


def record(scores: list[Score]) -> None:
    RECORDED.mkdir(exist_ok=True)
    for one in scores:
        case = {"cause": one.case.cause, "state": one.state, "log": one.log}
        path = RECORDED / f"{one.case.name}.yaml"
        path.write_text(yaml.safe_dump(case, sort_keys=False, allow_unicode=True, width=1000))


def table(scores: list[Score]) -> Table:
    shown = Table("case", "cause", "named first", "confidence", "others", "lines", "ms")
    for one in scores:
        cause = one.found.get("root_cause")
        shown.add_row(
            one.case.name,
            one.case.cause or "-",
            ("" if one.right else "[red]") + (cause["cause"] if cause else "-"),
            f"{cause['confidence']:.2f}" if cause else "",
            ", ".join(one.causes[1:]),
            ("" if one.cites else "[red]") + ",".join(map(str, cause["lines"])) if cause else "",
            f"{one.seconds * 1000:.0f}",
        )
    return shown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Console(width=140)))
